"""Sizes, norms, layers and stacks of layers, and the architecture that they make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lensbridge.spec.attention import Attention, Mixer
from lensbridge.spec.mlp import MLP, FusedGatedMLP, GatedMLP, MoE, Opaque
from lensbridge.spec.words import NormKind, Residual, Scale, Streams


@dataclass(frozen=True)
class Dims:
    """Names of the config fields that have the sizes (`block_sizes.0` in a list), or the sizes.

    The size of a head follows from the projections.

    Args:
        layers: the number of layers.
        d_model: the width of the residual stream.
        heads: the number of query heads. Here and in kv_heads, a field with a list has one number
            for each layer (OpenELM).
        kv_heads: the number of key/value heads; needed if q, k and v share a projection. None: as
            many as heads.
        vocab: the number of tokens.
        context: the number of positions.
    """

    layers: str | int = "num_hidden_layers"
    d_model: str | int = "hidden_size"
    heads: str | int = "num_attention_heads"
    kv_heads: str | int | None = None
    vocab: str | int = "vocab_size"
    context: str | int | None = "max_position_embeddings"


@dataclass(frozen=True)
class Norms:
    """The norm modules by their place, relative to the block.

    A place says what a norm reads and what reads it, whatever HuggingFace calls the module:
    `post_attention_layernorm` is the norm before the MLP in Llama. If both branches read one norm
    (GPT-J), name it in both places. A `post_` norm is applied to what the branch adds (Gemma 2), or
    with `residual="post_norm"` to the sum (BERT).

    Args:
        kind: LayerNorm or RMSNorm.
        unit_offset: whether the gain is 1 + weight (Gemma).
        eps: what is added under the root: a number or a config field. None if the modules have it.
        inner: the norm inside those of these modules that do more than normalize (A.X K2).
        gate: the module inside them with the sigmoid of whose output that norm's output is
            multiplied. It reads that output.
    """

    pre_attn: str | None = None
    post_attn: str | None = None
    pre_cross: str | None = None
    post_cross: str | None = None
    pre_mlp: str | None = None
    post_mlp: str | None = None
    kind: NormKind = "LN"
    unit_offset: bool = False
    eps: Scale | None = None
    inner: str | None = None
    gate: str | None = None


@dataclass(frozen=True)
class Block:
    """One layer: its norms, its branches, and how these read and write the residual stream.

    A branch that is None does not exist or is not described.

    Args:
        residual: how the branches read and write the stream; None if that is not described. The
            branches that are described have their points then, and what needs the stream inside
            the layer (`hook_resid_mid`, decompositions) raises. Words about what is added
            (`post_attn`, `scale`...) are refused. Without branches, only the
            layer's input and output are points.
        mixer: a mixer in the place of attention, or beside it (Falcon-H1).
        cross: attention to an encoder's output, between `attn` and `mlp`.
        skip_norm: whether branches are added to the norm's output instead of its input (BLOOM's
            `apply_residual_connection_post_layernorm`, MiniMax).
        flattens: whether values after attention are `[(b p), m]` inside the block (OPT).
        per_layer: the module whose output is added after the MLP: a per-layer input (Gemma 4).
        out_scale: a buffer or parameter of the block that multiplies the whole stream at its end.
    """

    norms: Norms = Norms()
    attn: Attention | None = None
    mlp: MLP | GatedMLP | FusedGatedMLP | MoE | Opaque | None = None
    residual: Residual | None = "sequential"
    mixer: Mixer | None = None
    cross: Attention | None = None
    skip_norm: bool = False
    flattens: bool = False
    per_layer: str | None = None
    out_scale: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack of layers, with its embeddings and its final norm.

    Args:
        blocks: the list of layers, from the model with its head. Where a layer is no module of its
            own, but one module of each of several lists (XLM): these lists in the order of the data
            flow. The first module of a layer reads the stream, and the output of its last module is
            the stream after it; paths in `block` begin with the last word of a list's path.
        block: the description of a layer. If layers differ, several: each layer is read with the
            first that fits it.
        prefix: the beginning of the names of its points: `blocks` for the main stack of most
            models, `encoder` and `decoder`, `vision.blocks`.
        embed: the token embedding (in a vision tower the patch embedding).
        embed_overwritten: whether the model writes into the output tensor of the embedding, or of
            its norm, afterwards, so that the value has to be copied when it is read.
        embed_padding: whether the model also runs the embedding on padding with which it fills its
            input up to a whole window (LED). The point is the first run, of the tokens.
        embed_scale: the multiplier of the embedding outside the module; also the path of a buffer.
        pos_embed: learned absolute positions, if the model has them.
        embed_norm: a norm of the sum of the embeddings.
        final_norm: the norm after the last layer.
        embed_mixed: whether more happens to the embeddings before the first layer than a sum and a
            norm (ESM's token dropout, RoCBERT's shapes and sounds).
        streams: the axes of the residual stream, if they are not `[b, p, m]`.
        positions: "absolute" if more than the differences of `position_ids` matters, although there
            is no table of positions: a norm with a gain after rotary (Hunyuan).
        cycles: how many times a pass runs all layers and then the final norm, each time on another
            stream (HRM): a number, a config field or an expression. Each run of a layer is a layer
            of its own in the names of points.
        interrupted: whether the model changes the stream between the layers, outside of them (BLT's
            cross-attention from bytes to patches), or the config field that says after how many
            layers it does (RWKV halves it), 0 for never.
        dims: the config fields that have the sizes.
        config: the sub-config that has them, such as `text_config`; None for the model's config.
    """

    blocks: str | tuple[str, ...]
    block: Block | tuple[Block, ...]
    prefix: str = "blocks"
    embed: str | None = None
    embed_overwritten: bool = False
    embed_padding: bool = False
    embed_scale: Scale | None = None
    pos_embed: str | None = None
    embed_norm: str | None = None
    final_norm: str | None = None
    embed_mixed: bool = False
    streams: Streams | None = None
    positions: Literal["absolute"] | None = None
    cycles: Scale | None = None
    interrupted: bool | str = False
    dims: Dims = Dims()
    config: str | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture(Stack):
    """How one family of models lays out its modules: its main stack, its head and other stacks.

    Paths are from the model with a language-model head. A bare base model has the same modules
    without the base prefix, and no head.

    Args:
        name: its name in errors and in `model.cfg`.
        classes: class names of the models that it describes.
        unembed: the head. If classes have different heads, several: the first that exists is used.
        unembed_bias: a buffer or parameter outside the head that is added to its output.
        head_scale: the multiplier of the final norm's output before the head (T5).
        logit_scale: the multiplier of the head's output.
        logit_softcap: the config field with the bound of the soft-cap of the logits.
        head_hidden: the module between the stream and the head (BERT's transform), whose output the
            head reads.
        pooler: the module that makes one vector for a sequence.
        projector: the module that puts a vision tower's output into the main stack.
        towers: the other stacks: an encoder, a vision tower.
        requires: config fields, and the values that they must have for this description to apply.
            Two variants of one class are two descriptions.
        overrides: the name of the architecture that this one replaces for the same classes.
        undescribed: why `residual`, `attn`, `mixer` or `mlp` of the layers, the `experts` of their
            mixtures, the `pooler` or the head (`unembed`) is not described, each in a sentence. It
            is shown to whoever asks for what is lacking for it. Without a head, `hook_logits` is
            what the model returns.
    """

    name: str
    classes: tuple[str, ...]
    unembed: str | tuple[str, ...] | None = None
    unembed_bias: str | None = None
    head_scale: Scale | None = None
    logit_scale: Scale | None = None
    logit_softcap: str | None = None
    head_hidden: str | None = None
    pooler: str | None = None
    projector: str | None = None
    towers: tuple[Stack, ...] = ()
    requires: Mapping[str, object] = field(default_factory=dict)
    overrides: str | None = None
    undescribed: Mapping[str, str] = field(default_factory=dict)

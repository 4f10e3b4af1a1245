"""The vocabulary in which an architecture is described: frozen values, no torch.

An adapter builds one `Architecture` for each way in which a family lays out its modules. Paths are
dotted and relative to what encloses them: `embed` to the model, `norms` to the block, `up` to the
MLP; "" is the enclosing module itself. Everything that is said here is checked against the model
when it is loaded (`native/resolve`) and by behaviour (`lensbridge.testing`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = [
    "MLP",
    "Architecture",
    "Attention",
    "Block",
    "Dims",
    "FusedGatedMLP",
    "FusedLayout",
    "FusedQKV",
    "GatedMLP",
    "Halves",
    "LatentQKV",
    "Mixer",
    "MoE",
    "NormKind",
    "Norms",
    "Opaque",
    "QKNormAxes",
    "Residual",
    "Scale",
    "SplitQKV",
    "Stack",
]

Residual = Literal["sequential", "parallel", "post_norm"]
"""How the branches meet the stream. sequential: the MLP reads the stream after attention was added;
parallel: the same stream as attention; post_norm: as sequential, and each sum goes through a norm
(BERT), whose output is the stream from there on."""

NormKind = Literal["LN", "RMS"]
"""LayerNorm (centres and divides) or RMSNorm (divides only)."""

FusedLayout = Literal["blocked", "grouped", "sharded"]
"""How one projection holds q, k and v. blocked: all q, all k, all v. grouped: per key/value head
its queries, its key, its value. sharded: four shards, each all its q, all its v, all its k."""

QKNormAxes = Literal["flat", "positions_first", "heads_first"]
"""What a q or k norm is given: `[b, p, (h d)]`, `[b, p, h, d]` or `[b, h, p, d]`."""

Halves = Literal["gate_first", "up_first"]
"""Which half of a fused projection goes through the activation."""

Scale: TypeAlias = float | str
"""A number, a config field, or an expression over config fields such as
`scale_depth / sqrt(num_hidden_layers)` or `mlp_multipliers[1]`. For what a branch adds also the
path of a parameter of the block, with one number for each channel."""


@dataclass(frozen=True)
class Dims:
    """Names of the config fields that hold the sizes, or the sizes themselves.

    `kv_heads` is needed where q, k and v share a projection; None: as many as heads. The size of a
    head is read off the projections.
    """

    layers: str = "num_hidden_layers"
    d_model: str = "hidden_size"
    heads: str = "num_attention_heads"
    kv_heads: str | int | None = None
    vocab: str = "vocab_size"
    context: str | None = "max_position_embeddings"


@dataclass(frozen=True)
class Norms:
    """Which module stands in which slot, relative to the block.

    The slots say what is read and written, never HuggingFace's own names:
    `post_attention_layernorm` is the MLP's input norm in Llama. Where one norm serves both branches
    (GPT-J) both slots name it. A `post_` slot norms what the
    branch adds (Gemma 2), or with `residual="post_norm"` the sum (BERT).

    Args:
        kind: what they compute.
        unit_offset: whether the gain is 1 + weight (Gemma).
        eps: under the root, where the modules do not hold it: a number or a config field.
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


@dataclass(frozen=True)
class SplitQKV:
    """Three projections, relative to the attention module.

    Args:
        k: None where a layer has none of its own and reads those of an earlier layer; so `v`.
            `v` may be the path of `k`, where keys are the values too.
        gated_q: whether the q projection holds, per head, the query and then a gate for z.
    """

    q: str = "q_proj"
    k: str | None = "k_proj"
    v: str | None = "v_proj"
    gated_q: bool = False


@dataclass(frozen=True)
class FusedQKV:
    """One projection that holds q, k and v, relative to the attention module."""

    path: str
    layout: FusedLayout


@dataclass(frozen=True)
class LatentQKV:
    """Multi-head latent attention (DeepSeek): keys and values go through a narrow latent.

    `kv_down` gives the latent and, behind it, the rotary part of the key that all heads share;
    `kv_up` gives per head the other part of the key, then the value.

    Args:
        q: the projection that gives the queries: from the stream, or from the latent of `q_down`.
        q_down: the query's own latent, where it has one; `q_norm` its norm.
    """

    q: str = "q_b_proj"
    kv_down: str = "kv_a_proj_with_mqa"
    kv_norm: str = "kv_a_layernorm"
    kv_up: str = "kv_b_proj"
    q_down: str | None = "q_a_proj"
    q_norm: str | None = "q_a_layernorm"


@dataclass(frozen=True)
class Attention:
    """The attention module of a block.

    Args:
        path: the module, relative to the block.
        qkv: how queries, keys and values are projected.
        out: the output projection, relative to the attention module.
        rotary: whether q and k are rotated by position after projection.
        written_by: the module of the block whose output is added to the residual stream, where
            that is not the attention module itself nor a norm behind it (a dropout, say).
        scale: what multiplies that output before it is added.
        q_norm: norm of the queries before rotary, relative to the attention module; so `k_norm`
            and `v_norm`.
        qk_norm_axes: what these norms are given.
        sinks: the parameter with one extra logit per head that takes attention to nowhere.
        gated: whether z is gated, normalised or mixed between the kernel and the output
            projection, so that it is not the projection's input.
        position_bias: the embedding of relative positions, in the layers that hold one.
        in_scale: what multiplies the norm's output before the projections (Falcon-H1).
        k_scale: what multiplies the keys before rotary.
        clip: the config field that bounds q, k and v behind their projections.
        out_bias: a parameter that the block adds to what attention gives, in layers that hold one.
    """

    path: str
    qkv: SplitQKV | FusedQKV | LatentQKV
    out: str
    rotary: bool = False
    written_by: str | None = None
    scale: Scale | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    v_norm: str | None = None
    qk_norm_axes: QKNormAxes = "positions_first"
    sinks: str | None = None
    gated: bool = False
    position_bias: str | None = None
    in_scale: Scale | None = None
    k_scale: Scale | None = None
    clip: str | None = None
    out_bias: str | None = None


@dataclass(frozen=True)
class Mixer:
    """A state-space, convolution or linear-attention module, at its native boundaries.

    Args:
        path: the module, relative to the block.
        steps: modules inside it whose outputs are points.
        fed_more: whether it reads more than the stream through `pre_attn` (Zamba adds the output of
            shared attention first).
        written_by: as in `Attention`, so `scale`.
    """

    path: str
    steps: tuple[str, ...] = ()
    written_by: str | None = None
    scale: Scale | None = None
    fed_more: bool = False


@dataclass(frozen=True)
class MLP:
    """Up, activation, down. `path` and `written_by` start at the block, the rest at `path`.

    `overwritten`: the model adds into the MLP's own output tensor afterwards, so who reads it keeps
    a copy. `act` is the config field with the activation's name, or the name itself where no field
    holds it.
    """

    path: str
    up: str
    down: str
    act: str = "hidden_act"
    written_by: str | None = None
    scale: Scale | None = None
    overwritten: bool = False


@dataclass(frozen=True)
class GatedMLP:
    """act(gate) * up, then down. Paths as in `MLP`.

    `gate_scale` multiplies the gate before its activation; `inner_norm` stands between the gated
    product and the down projection (BitNet).
    """

    path: str
    gate: str
    up: str
    down: str
    act: str = "hidden_act"
    written_by: str | None = None
    scale: Scale | None = None
    gate_scale: Scale | None = None
    inner_norm: str | None = None
    overwritten: bool = False


@dataclass(frozen=True)
class FusedGatedMLP:
    """As `GatedMLP`, with gate and up in one projection. Paths as in `MLP`."""

    path: str
    gate_up: str
    down: str
    halves: Halves = "gate_first"
    act: str = "hidden_act"
    written_by: str | None = None
    scale: Scale | None = None


@dataclass(frozen=True)
class MoE:
    """Experts that a router chooses for each token. Paths as in `MLP`.

    Args:
        router: the module that computes the router's logits first.
        experts: the module that is called with tokens, chosen indices and their weights, and holds
            the experts stacked in three-dimensional parameters; None where it is not of that form.
        shared: an MLP that every token passes, its paths relative to `path`.
        written_by: the module or modules whose outputs, summed, are what is added.
    """

    path: str
    router: str = "gate"
    experts: str | None = "experts"
    shared: MLP | GatedMLP | FusedGatedMLP | None = None
    act: str = "hidden_act"
    written_by: str | tuple[str, ...] | None = None
    scale: Scale | None = None


@dataclass(frozen=True)
class Opaque:
    """A branch in the MLP's place that is known only by what it reads and adds (RWKV)."""

    path: str
    written_by: str | None = None
    scale: Scale | None = None


@dataclass(frozen=True)
class Block:
    """One layer: its norms, branches, and how they meet the residual stream.

    A branch that is None is not there, or is not described; `residual` None leaves the layer's
    inside undescribed, so that only its ends are points.

    Args:
        mixer: instead of attention, or beside it (Falcon-H1).
        cross: attention to an encoder's output, between `attn` and `mlp`.
        skip_norm: whether the stream that a branch is added to is the norm's output, not its input
            (BLOOM's `apply_residual_connection_post_layernorm`, MiniMax).
        flattens: whether its inside, behind attention, is `[(b p), m]` (OPT).
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
    """A tower of layers with what stands before and behind it.

    Args:
        blocks: the list of layers, from the model with its head.
        block: what one layer looks like; several where layers differ: each layer is read with the
            first whose modules it has.
        prefix: what its points are called: `blocks.{i}` for the main stack of most models,
            `encoder.{i}` and `decoder.{i}`, `vision.blocks.{i}`.
        embed: token embedding (in a vision tower the patch embedding).
        embed_overwritten: whether the model adds into the embedding's own output afterwards, so
            that who reads it keeps a copy.
        embed_scale: what multiplies it outside the module; also the path of a buffer.
        pos_embed: learned absolute positions, where there are any.
        embed_norm: a norm on the sum of the embeddings.
        final_norm: the norm behind the last layer.
        embed_mixed: whether more happens to the embeddings before the first layer than a sum and a
            norm (ESM's token dropout, RoCBERT's shapes and sounds).
        streams: what the residual stream's axes are, where not `[b, p, m]`: `streams_first` is
            `[r, b, p, m]` (Gemma 3n), `streams_last` `[b, p, r, m]` (hyper-connections), `flat`
            `[p, m]` (the patches of all pictures in one row: Qwen2-VL).
        positions: "absolute" where `position_ids` matter beyond their differences although they are
            no table of embeddings: a norm with a gain behind rotary (Hunyuan).
        dims: which config fields hold the sizes.
        config: the sub-config that holds them, as `text_config`; None: the model's own.
    """

    blocks: str
    block: Block | tuple[Block, ...]
    prefix: str = "blocks"
    embed: str | None = None
    embed_overwritten: bool = False
    embed_scale: Scale | None = None
    pos_embed: str | None = None
    embed_norm: str | None = None
    final_norm: str | None = None
    embed_mixed: bool = False
    streams: Literal["streams_first", "streams_last", "flat"] | None = None
    positions: Literal["absolute"] | None = None
    dims: Dims = Dims()
    config: str | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture(Stack):
    """How one family of models lays out its modules: its main stack and what else it has.

    Paths are from the model with a language-model head. A bare base model has the same modules
    without the base prefix, and no head.

    Args:
        name: what errors and `model.cfg` call it.
        classes: class names of the models that it describes.
        unembed: the head; several where the classes have different ones: the first that is there.
        unembed_bias: a buffer or parameter outside the head that is added to its output.
        head_scale: what multiplies the final norm's output before the head reads it (T5).
        logit_scale: what multiplies the head's output.
        logit_softcap: the config field with the bound that the logits are squeezed into.
        head_hidden: the module between the stream and the head (BERT's transform), whose output the
            head reads.
        pooler: the module that makes one vector of a sequence.
        projector: the module that carries a vision tower's output into the main stack.
        towers: the other stacks: an encoder, a vision tower.
        requires: config fields and the values they must have for this description to hold. Two
            variants of one class are two descriptions.
        overrides: the name of the architecture that this one replaces for the same classes.
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

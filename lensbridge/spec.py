"""The vocabulary in which an architecture is described: frozen values, no torch.

An adapter makes one `Architecture` for each layout of modules in a family. Paths are dotted and
relative to the enclosing part: `embed` to the model, `norms` to the block, `up` to the MLP; "" is
the enclosing module itself. A description is checked against the model when that is loaded
(`native/resolve`), and by running the model (`lensbridge.testing`).
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
    "ExpertInput",
    "ExpertLayout",
    "FusedGatedMLP",
    "FusedLayout",
    "FusedOrder",
    "FusedQKV",
    "GatedMLP",
    "Halves",
    "KernelQKV",
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
    "StackedExperts",
    "Streams",
]

Residual = Literal["sequential", "parallel", "post_norm", "reversible"]
"""How branches read the stream. sequential: the MLP reads the stream after attention was added;
parallel: it reads the same stream as attention; post_norm: as sequential, and each sum goes through
a norm, whose output is the new stream (BERT); reversible: a layer takes and gives two streams, and
its points of the stream are `[r, b, p, m]`: attention reads the second and is added to the first,
the MLP reads the first and is added to the second (Reformer)."""

NormKind = Literal["LN", "RMS"]
"""LayerNorm (centres and divides) or RMSNorm (divides only)."""

FusedLayout = Literal["blocked", "grouped", "sharded"]
"""How one projection contains q, k and v. blocked: all q, all k, all v. grouped: for each key/value
head its queries, its key, its value. sharded: four shards, each with all its q, v and k."""

FusedOrder = Literal["qkv", "qvk", "kqv", "kvq", "vqk", "vkq"]
"""The order of queries, keys and values in a blocked projection."""

Streams = Literal[
    "streams_first", "streams_last", "side_by_side", "end_to_end", "flat", "positions_first"
]
"""The axes of the residual stream. streams_first: `[r, b, p, m]`, several streams (Gemma 3n).
streams_last: `[b, p, r, m]` (hyper-connections). side_by_side: `[b, p, (r m)]`, several streams in
one vector (Qwen 4). flat: `[p, m]`, the patches of all images in one row (Qwen2-VL), so that no
point has a batch axis. positions_first: `[p, b, m]` (XLNet); points have the batch first all the
same. end_to_end: `[b, (r p), m]`, several streams in one row of positions, the tokens' first
(ProphetNet); the head reads the others, and the logits are those of the second."""

QKNormAxes = Literal["flat", "positions_first", "heads_first"]
"""The input of a norm of q or k: `[b, p, (h d)]`, `[b, p, h, d]` or `[b, h, p, d]`."""

Halves = Literal["gate_first", "up_first"]
"""Which half of a fused projection is the gate, which goes through the activation."""

ExpertLayout = Literal["out_in", "in_out", "neuron_rows"]
"""How a parameter holds the weights of all experts. out_in: `[expert, out, in]`; in_out: `[expert,
in, out]`; neuron_rows: `[(expert neuron), d_model]`, in which the number of experts is the router's
width (DBRX)."""

ExpertInput = Literal["chosen", "all", "sorted"]
"""How tokens get to experts. chosen: their module is called with the tokens, the indices of the
chosen experts and the weights of these. all: it is called with every token once for each expert,
times the weight of that expert, which is 0 where it was not chosen; the router returns these
weights first (Llama 4). sorted: the mixture sorts the tokens by expert, as its router returns the
order, the tokens, the weights and the number of tokens for each expert (JetMoE)."""

Scale: TypeAlias = float | str
"""A number, a config field, or an expression over config fields such as
`scale_depth / sqrt(num_hidden_layers)` or `mlp_multipliers[1]`. For the output of a branch, and for
what it is added to, it can also be the path of a parameter of the block, with one number or one for
each channel, the tanh of one (`tanh(gate)`), or a product of such factors and expressions
(`ls1 * gate`); there `layer_index` is the index of the layer."""


@dataclass(frozen=True)
class Dims:
    """Names of the config fields that have the sizes (`block_sizes.0` in a list), or the sizes.

    The size of a head follows from the projections.

    Args:
        layers: the number of layers.
        d_model: the width of the residual stream.
        heads: the number of query heads.
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
class SplitQKV:
    """Three projections, relative to the attention module.

    Each is a module, or a parameter `[d_model, head, d_head]` with which the attention module calls
    `einsum` (XLNet); likewise `Attention.out`.

    Args:
        k: None if a layer uses the keys of an earlier layer; likewise `v`. If keys are the values
            too, `v` is the path of `k`.
        gated_q: whether the q projection contains, for each head, the query and then a gate for z.
    """

    q: str = "q_proj"
    k: str | None = "k_proj"
    v: str | None = "v_proj"
    gated_q: bool = False


@dataclass(frozen=True)
class FusedQKV:
    """One projection that contains q, k and v, relative to the attention module.

    Args:
        order: of the three in a blocked layout.
        q_bias: a parameter that is added to the queries, where the projection has no bias of its
            own (DeBERTa); likewise `v_bias`.
    """

    path: str
    layout: FusedLayout
    order: FusedOrder = "qkv"
    q_bias: str | None = None
    v_bias: str | None = None


@dataclass(frozen=True)
class LatentQKV:
    """Multi-head latent attention (DeepSeek): keys and values are made from a narrow latent.

    Args:
        q: the projection to the queries, from the stream or from the latent of `q_down`.
        kv_down: the projection to the latent and, after it, to the rotary part of the key, which
            all heads share.
        kv_norm: the norm of the latent.
        kv_up: the projection, for each head, to the other part of the key and then the value.
        q_down: the projection to a latent of the queries; None if they have none.
        q_norm: the norm of that latent.
        q_reads_latent: whether the q projection reads, after the normed latent, also the latent as
            it is (A.X K2).
        gated_q: as in `SplitQKV`; the gate is as wide as z.
        kv_scale: the multiplier of the normed latent of keys and values (LongCat Flash).
    """

    q: str = "q_b_proj"
    kv_down: str = "kv_a_proj_with_mqa"
    kv_norm: str = "kv_a_layernorm"
    kv_up: str = "kv_b_proj"
    q_down: str | None = "q_a_proj"
    q_norm: str | None = "q_a_layernorm"
    q_reads_latent: bool = False
    gated_q: bool = False
    kv_scale: Scale | None = None


@dataclass(frozen=True)
class KernelQKV:
    """Queries, keys and values that are not the outputs of projections: Zaya's are convolved.

    They are read as the attention kernel gets them: `hook_rot_q` and `hook_rot_k`, with or without
    rotary, and `hook_v`. There are no weights for them, and nothing else is said of them.
    """


@dataclass(frozen=True)
class Attention:
    """The attention module of a block.

    Args:
        path: the module, relative to the block.
        qkv: how queries, keys and values are projected.
        out: the output projection, relative to the attention module.
        rotary: whether q and k are rotated by position after projection.
        written_by: the module of the block whose output is added to the residual stream, if that is
            neither the attention module itself nor a norm after it (but a dropout, say).
        scale: the multiplier of that output before it is added.
        skip_scale: the multiplier of the stream that it is added to (Doge, MiniMax).
        sum_bias: what is added to that sum beside: a parameter of the block, or products of
            parameters joined by + (`norm.bias * norm.scale + shift`), with one number for each
            channel (Zaya).
        q_norm: the norm of the queries before rotary, relative to the attention module; likewise
            `k_norm` and `v_norm`.
        qk_norm_axes: the axes of the input of these norms.
        sinks: the parameter with one more logit for each head, whose share of the attention is
            dropped.
        gated: whether z is gated, normalised or mixed between the kernel and the output
            projection, so that it is not the projection's input.
        position_bias: the embedding of relative positions, in the layers that have one.
        in_scale: the multiplier of the norm's output before the projections (Falcon-H1).
        q_scale: the multiplier of the queries before rotary; likewise `k_scale`.
        v_scale: the multiplier of the values (MiMo-V2-Flash).
        clip: the config field with the bound to which q, k and v are clipped after projection.
        mask_from_v: whether the kernel's mask is computed from the values (Doge), so that they also
            change the pattern.
        out_bias: a parameter that the block adds to attention's output, in layers that have one.
        overwritten: whether the model writes into attention's output tensor (or into that of the
            norm after it) afterwards, so that its value has to be copied when it is read.
    """

    path: str
    qkv: SplitQKV | FusedQKV | LatentQKV | KernelQKV
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
    q_scale: Scale | None = None
    k_scale: Scale | None = None
    v_scale: Scale | None = None
    clip: str | None = None
    out_bias: str | None = None
    mask_from_v: bool = False
    overwritten: bool = False
    skip_scale: Scale | None = None
    sum_bias: str | None = None


@dataclass(frozen=True)
class Mixer:
    """A state-space, convolution or linear-attention module: its input, its output and its modules.

    Args:
        path: the module, relative to the block.
        steps: modules inside it whose outputs are points.
        fed_more: whether it reads more than the stream after `pre_attn` (Zamba adds the output of
            shared attention first).
        feeder: attention whose output goes on to the mixer, and not to the stream (Zamba, in which
            several layers share it). Its path is relative to the block, and its points are those
            of `attn`. It needs `fed_more`.
        written_by: as in `Attention`; likewise `scale`, `skip_scale` and `sum_bias`.
    """

    path: str
    steps: tuple[str, ...] = ()
    written_by: str | None = None
    scale: Scale | None = None
    fed_more: bool = False
    skip_scale: Scale | None = None
    sum_bias: str | None = None
    feeder: Attention | None = None


@dataclass(frozen=True)
class MLP:
    """Up, activation, down. `path` and `written_by` are relative to the block, the rest to `path`.

    Args:
        act: the config field with the name of the activation, or that name if no field has it.
        overwritten: whether the model adds into the MLP's output tensor afterwards, so that its
            value has to be copied when it is read.
        token_shift: the parameter with the share of each channel that `up` reads at this position;
            it reads the rest at the position before (RWKV).
        out_gate: the projection whose sigmoid multiplies the output of `down` (RWKV).
        skip_scale: as in `Attention`; likewise `sum_bias`.
    """

    path: str
    up: str
    down: str
    act: str = "hidden_act"
    written_by: str | None = None
    scale: Scale | None = None
    overwritten: bool = False
    skip_scale: Scale | None = None
    sum_bias: str | None = None
    token_shift: str | None = None
    out_gate: str | None = None


@dataclass(frozen=True)
class GatedMLP:
    """act(gate) * up, then down. Paths, `act` and `overwritten` as in `MLP`.

    Args:
        gate_scale: the multiplier of the gate before its activation.
        inner_norm: a norm between the gated product and the down projection (BitNet).
        sparsity: the share of the gate's values that are cut off before the activation (Gemma 3n):
            each loses the mean and that quantile of a normal distribution with their deviation, and
            what is negative then is zero.
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
    sparsity: Scale | None = None
    skip_scale: Scale | None = None
    sum_bias: str | None = None


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
    skip_scale: Scale | None = None
    sum_bias: str | None = None


@dataclass(frozen=True)
class StackedExperts:
    """Experts whose weights are stacked in other parameters than transformers' usual ones.

    The experts are gated. They have either `gate_up`, or `gate` and `up`. Paths of parameters and
    of the activation are relative to `path`, which is relative to the mixture.

    Args:
        path: the module that is called with tokens; "" is the mixture itself.
        down: the parameter with the down projections.
        gate_up: the parameter with the gates, and after them the up projections.
        gate: the parameter with the gates only; `up` that with the up projections.
        layout: how each parameter holds the weights.
        activation: the module of the activation.
        given: how tokens get to the experts.
    """

    path: str
    down: str = "down_proj"
    gate_up: str | None = None
    gate: str | None = None
    up: str | None = None
    layout: ExpertLayout = "out_in"
    activation: str = "act_fn"
    given: ExpertInput = "chosen"


@dataclass(frozen=True)
class MoE:
    """Experts that a router chooses for each token. Paths as in `MLP`.

    Args:
        router: the module whose first product is the router's logits.
        experts: the module that is called with tokens, chosen indices and their weights, and has
            the experts stacked in three-dimensional parameters named `gate_up_proj` (or `up_proj`)
            and `down_proj`; or `StackedExperts`, where they are stacked in another form. None if
            they cannot be read one by one.
        shared: an MLP that all tokens share, with paths relative to `path`.
        written_by: the module or modules whose outputs add up to what is added to the stream.
        out_bias: a parameter that the mixture adds to the sum of the experts' outputs (JetMoE),
            relative to `path`.
        table: the buffer or parameter with the experts of each token id, where it chooses them and
            the router's logits only weigh them (the first layers of DeepSeek V4); relative to
            `path`.
    """

    path: str
    router: str = "gate"
    experts: str | StackedExperts | None = "experts"
    shared: MLP | GatedMLP | FusedGatedMLP | None = None
    act: str = "hidden_act"
    written_by: str | tuple[str, ...] | None = None
    scale: Scale | None = None
    skip_scale: Scale | None = None
    sum_bias: str | None = None
    out_bias: str | None = None
    table: str | None = None


@dataclass(frozen=True)
class Opaque:
    """A branch in the place of the MLP of which only the input and output are described (RWKV)."""

    path: str
    written_by: str | None = None
    scale: Scale | None = None
    skip_scale: Scale | None = None
    sum_bias: str | None = None


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
            cross-attention from bytes to patches).
        dims: the config fields that have the sizes.
        config: the sub-config that has them, such as `text_config`; None for the model's config.
    """

    blocks: str | tuple[str, ...]
    block: Block | tuple[Block, ...]
    prefix: str = "blocks"
    embed: str | None = None
    embed_overwritten: bool = False
    embed_scale: Scale | None = None
    pos_embed: str | None = None
    embed_norm: str | None = None
    final_norm: str | None = None
    embed_mixed: bool = False
    streams: Streams | None = None
    positions: Literal["absolute"] | None = None
    cycles: Scale | None = None
    interrupted: bool = False
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
        undescribed: why `residual`, `attn`, `mixer` or `mlp` of the layers is not described, each
            in a sentence. It is shown to whoever asks for the points that are lacking for it.
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

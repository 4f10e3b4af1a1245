"""What mixes positions: attention, with the ways to project its inputs, and other mixers."""

from dataclasses import dataclass

from lensbridge.spec.words import FusedLayout, FusedOrder, QKNormAxes, Scale


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

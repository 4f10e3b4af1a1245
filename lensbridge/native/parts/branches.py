"""The branches of a layer, resolved: attention, MLPs, mixtures of experts, other mixers."""

from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from lensbridge.native.experts import Experts
from lensbridge.native.linear import Linear
from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.spec import QKNormAxes
from lensbridge.tensors.layouts import Layout


@dataclass(frozen=True)
class Role:
    """One of q, k, v, gate, up: a projection, and which part of its output it is.

    It is `n` heads of width `d`; for gate and up `n` is 1. `scale` multiplies the projection's
    output, `in_scale` its input. `bias` is added to the multiplied output, and held apart: a module
    and the name of the parameter.
    """

    linear: Linear
    layout: Layout
    n: int
    d: int
    scale: float = 1.0
    in_scale: float = 1.0
    bias: tuple[nn.Module, str] | None = None


@dataclass(frozen=True)
class Writer:
    """What a branch adds to the stream: the sum of the modules' outputs, times `scale`, plus `bias`
    (a module and the name of the parameter).
    """

    modules: tuple[nn.Module, ...]
    scale: Multiplier
    bias: tuple[nn.Module, str] | None = None


@dataclass(frozen=True)
class LatentPart:
    """The latents of keys and values, and of queries where `q_down` is not None.

    Args:
        q_reads_latent: whether queries are made of the normed latent and the latent as it is.
        kv_scale: the multiplier of the normed latent of keys and values.
    """

    kv_down: Linear
    kv_norm: Norm
    kv_up: Linear
    q_down: Linear | None
    q_norm: Norm | None
    d_nope: int
    d_rope: int
    q_reads_latent: bool = False
    kv_scale: float = 1.0


@dataclass(frozen=True)
class AttentionPart:
    """Attention of one block. `k` and `v` are None where it uses those of another layer.

    q, k and v are all None where no projections make them, and they are read at the kernel.

    Args:
        post_norm: the norm of its output, before that is added to the stream.
        n_heads, n_kv, d_head: of this layer; `d_head` is the width of z.
    """

    module: nn.Module
    path: str
    q: Role | None
    k: Role | None
    v: Role | None
    out: Linear
    writer: Writer
    post_norm: Norm | None
    rotary: bool
    n_heads: int
    n_kv: int
    d_head: int
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    v_norm: nn.Module | None = None
    qk_norm_axes: QKNormAxes = "positions_first"
    latent: LatentPart | None = None
    sinks: tuple[nn.Module, str] | None = None
    gated: bool = False
    position_bias: nn.Module | None = None
    clip: float | None = None
    mask_from_v: bool = False
    overwritten: bool = False

    @property
    def roles(self) -> dict[str, Role]:
        """q, k and v, as far as this layer projects them itself."""
        roles = {"q": self.q, "k": self.k, "v": self.v}
        return {letter: role for letter, role in roles.items() if role is not None}


@dataclass(frozen=True)
class MLPPart:
    """MLP of one block. Gated ones have `gate`; `inner_norm` is between the neurons and `down`.

    Args:
        act: the activation, under its name in the config.
        sparsity: the share of the gate's values that are cut off before the activation.
        token_shift: the share of each channel that `up` reads at this position, the rest being of
            the position before: a module and the name of the parameter.
        out_gate: the module whose sigmoid multiplies the output of `down`.
    """

    module: nn.Module
    path: str
    act: str
    up: Role
    gate: Role | None
    down: Linear
    writer: Writer
    post_norm: Norm | None = None
    inner_norm: nn.Module | None = None
    overwritten: bool = False
    sparsity: float = 0.0
    token_shift: tuple[nn.Module, str] | None = None
    out_gate: nn.Module | None = None

    @property
    def writes_neurons(self) -> bool:
        """Whether what is added is the sum of what the neurons write, each with its own weights."""
        return self.out_gate is None


@dataclass(frozen=True)
class MoEPart:
    """A mixture of experts; `experts` is None where they are not stacked in the usual form.

    Args:
        act: the activation of the experts, under its name in the config.
        n_choices: how many the router chooses from: experts, and choices that compute nothing.
        out_bias: what is added to the sum of the experts' outputs: a module and the name there.
        table: the experts of each token id, where the router does not choose them.
    """

    module: nn.Module
    path: str
    act: str
    router: nn.Module
    n_experts: int
    n_choices: int
    experts: Experts | None
    shared: MLPPart | None
    writer: Writer
    post_norm: Norm | None = None
    out_bias: tuple[nn.Module, str] | None = None
    table: tuple[nn.Module, str] | None = None


@dataclass(frozen=True)
class OpaquePart:
    """A branch in the place of an MLP, whose inside is not described."""

    module: nn.Module
    path: str
    writer: Writer


FeedForward: TypeAlias = MLPPart | MoEPart | OpaquePart


@dataclass(frozen=True)
class MixerPart:
    """A state-space or linear-attention module; `steps` are the modules inside it by name.

    Args:
        feeder: attention whose output goes on to the mixer, and not to the stream.
    """

    module: nn.Module
    path: str
    steps: dict[str, nn.Module]
    writer: Writer
    fed_more: bool = False
    feeder: AttentionPart | None = None

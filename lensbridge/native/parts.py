"""A native model taken apart: which module has which role. Built by `native/resolve`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lensbridge.native.calling import Calling, logits_in
from lensbridge.native.experts import Experts
from lensbridge.native.linear import Linear
from lensbridge.native.multiplier import Constant, Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.pieces import Sharding
from lensbridge.spec import Architecture, QKNormAxes, Residual
from lensbridge.tensors.layouts import Layout


@dataclass(frozen=True)
class Sizes:
    """The sizes of one stack. Where layers differ, those of the first that has the part."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int | None


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


@dataclass(frozen=True)
class Override:
    """Code that a description does not speak of.

    Args:
        where: path of the first module that runs it; "" is the model itself.
        what: the code, in words.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where or 'the model'}: {self.what}"


NormSlot: TypeAlias = Literal["ln1", "ln1_post", "ln_cross", "ln_cross_post", "ln2", "ln2_post"]
"""The place of a norm in a block, named as in the points; `_post` is after a branch."""


@dataclass(frozen=True)
class Members:
    """The modules of a layer that is no module of its own.

    Args:
        modules: by their paths, in the order of the data flow.
        runner: the module whose code calls them.
    """

    modules: Mapping[str, nn.Module]
    runner: nn.Module


@dataclass(frozen=True)
class BlockPart:
    """One block. A branch that the architecture does not have is None.

    Args:
        norms: the norms that the block has, in data-flow order. In a post-norm block the norms of
            the sums are `ln1`, `ln_cross` and `ln2`.
        skip_scales: what the stream is multiplied by before attention (or the mixer) is added to
            it, and before the MLP is.
        sum_biases: what else is added to the stream with attention (or the mixer), and with the
            MLP.
        repeat: which call of the module this layer is, where layers share one; else None.
        begins_anew: whether the stream that it reads is not the one that the layer before it gives.
        members: the modules of the layer, where `module` only holds them and is never called.
        pair: the arguments of its forward that are the two streams of a reversible layer, whose
            `residual` is None: there is no one stream that branches add to.
    """

    module: nn.Module
    path: str
    norms: Mapping[NormSlot, Norm]
    attn: AttentionPart | None
    cross: AttentionPart | None
    mixer: MixerPart | None
    mlp: FeedForward | None
    per_layer: nn.Module | None
    residual: Residual | None
    skip_norm: bool
    flattens: bool
    out_scale: tuple[nn.Module, str] | None
    skip_scales: tuple[Multiplier, Multiplier] = (Multiplier(), Multiplier())
    sum_biases: tuple[Constant, Constant] = (Constant(), Constant())
    repeat: int | None = None
    begins_anew: bool = False
    members: Members | None = None
    pair: tuple[str, str] | None = None

    @property
    def entrance(self) -> nn.Module:
        """The module whose input is the stream before the layer."""
        return self.module if self.members is None else next(iter(self.members.modules.values()))

    @property
    def exit(self) -> nn.Module:
        """The module whose output is the stream after the layer."""
        return self.module if self.members is None else [*self.members.modules.values()][-1]

    @property
    def runner(self) -> nn.Module:
        """The module whose code adds what the branches give."""
        return self.module if self.members is None else self.members.runner

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of its modules."""
        return (self.path,) if self.members is None else tuple(self.members.modules)

    @property
    def adds_up(self) -> bool:
        """Whether it is described how the branches change the stream, or two streams."""
        return self.residual is not None or self.pair is not None

    @property
    def attention(self) -> AttentionPart | None:
        """The attention with the points of `attn`: a branch, or what feeds the mixer."""
        fed = None if self.mixer is None else self.mixer.feeder
        return self.attn if self.attn is not None else fed

    @property
    def has_branches(self) -> bool:
        """Whether any branch is described."""
        return any((self.attn, self.cross, self.mixer, self.mlp))

    @property
    def keeps_stream(self) -> bool:
        """Whether what is in the stream stays as it is: nothing multiplies or moves all of it."""
        moved = any(not constant.is_zero for constant in self.sum_biases)
        scaled = self.out_scale is not None or any(not one.is_one for one in self.skip_scales)
        return not moved and not scaled

    @property
    def ln1(self) -> Norm | None:
        """Attention's norm."""
        return self.norms.get("ln1")

    @property
    def ln2(self) -> Norm | None:
        """The MLP's norm."""
        return self.norms.get("ln2")


@dataclass(frozen=True)
class StackPart:
    """One stack of layers.

    Args:
        path: the path of its list of layers.
        takes_positions: whether padding on the left needs `position_ids`, because positions are
            absolute and the model does not count them from the tokens.
        residual_axes: "b p m", or with an axis `r` where there are several streams.
        positions_first: whether its native values are `[p, b, ...]`.
        cycles: how many times a pass runs all layers and then the final norm.
    """

    prefix: str
    path: str
    sizes: Sizes
    config: Any
    embed: nn.Module | None
    embed_scale: Multiplier
    embed_overwritten: bool
    pos_embed: nn.Module | None
    takes_positions: bool
    residual_axes: str
    ln_embed: Norm | None
    blocks: tuple[BlockPart, ...]
    ln_final: Norm | None
    positions_first: bool = False
    cycles: int = 1

    @property
    def in_one_row(self) -> bool:
        """Whether values have no batch axis, because all images are in one row."""
        return self.residual_axes == "p m"

    @property
    def end_to_end(self) -> bool:
        """Whether several streams are in one row of positions."""
        return self.residual_axes == "b s m"

    def turned(self, stream: Tensor) -> Tensor:
        """A native value with the batch first, or the other way round."""
        return stream.transpose(0, 1) if self.positions_first else stream


LabelKind: TypeAlias = Literal["position", "input", "other"]
"""Whether a label is of each position, each input (a class, or numbers), or something else."""


@dataclass(frozen=True)
class ResolvedModel:
    """One model, resolved.

    Args:
        root: the object that is called: the model, or a PEFT wrapper around it.
        core: the transformers model inside it.
        rivals: what else claims the model's class, and is not in use.
        overrides: code that a registered description does not speak of.
        main: the stack whose output the head reads; `towers` are the others.
        act_fn: the activation of the main stack's MLPs, under its name in the config.
        main_input: what the input is: `input_ids`, `pixel_values`, `input_features`.
        calling: how `core.forward` is called.
        returns_logits: whether the output has logits, also those of a head that is not described.
        logits_axes: "b p v", or "b v" where the head reads one vector for the whole input.
        is_encoder_decoder: whether the input goes to a tower and the main stack has another.
        predicts_next: whether the logits at a position are for the next token, which the model has
            not read there: then an input has a loss without labels.
        label_kind: what the `labels` of `core.forward` are of; None where it takes none.
        paths: module -> its dotted path in `core`, for messages.
        checkpointers: the modules with a `gradient_checkpointing` switch.
        sharding: which native tensors are in pieces on several ranks; None: none is.
    """

    root: nn.Module
    core: nn.Module
    architecture: Architecture
    plugin: str
    rivals: tuple[str, ...]
    overrides: tuple[Override, ...]
    main: StackPart
    towers: tuple[StackPart, ...]
    act_fn: str
    unembed: Linear | None
    returns_logits: bool
    unembed_bias: tuple[nn.Module, str] | None
    head_scale: float
    logit_scale: float
    logit_softcap: float | None
    head_hidden: nn.Module | None
    pooler: nn.Module | None
    projector: nn.Module | None
    main_input: str
    calling: Calling
    logits_axes: str
    is_encoder_decoder: bool
    predicts_next: bool
    label_kind: LabelKind | None
    paths: dict[nn.Module, str]
    checkpointers: tuple[Any, ...]
    sharding: Sharding | None = None

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Call the model with inputs under the names that lensbridge has for them."""
        return self.calling.call(self.root, inputs)

    @property
    def head_width(self) -> int | None:
        """Logits for each position; None where nothing says how many."""
        return self.unembed.n_out if self.unembed is not None else self.sizes.d_vocab or None

    def logits(self, output: Any) -> Tensor:
        """The head's output in what the model returns.

        Raises:
            InputError: there are no logits.
        """
        return logits_in(output, self.head_width)

    @property
    def stacks(self) -> tuple[StackPart, ...]:
        """Every stack, the main one first."""
        return (self.main, *self.towers)

    def front_of(self, stack: StackPart) -> str:
        """The beginning of names outside a stack's layers: nothing, `encoder.` or `vision.`."""
        return "" if stack is self.main else stack.prefix.removesuffix(".blocks") + "."

    @property
    def ln_final(self) -> Norm | None:
        """Of the main stack."""
        return self.main.ln_final

    @property
    def sizes(self) -> Sizes:
        """Of the main stack."""
        return self.main.sizes

    @property
    def blocks(self) -> tuple[BlockPart, ...]:
        """Of the main stack."""
        return self.main.blocks

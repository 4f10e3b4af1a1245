"""Layers and stacks of layers, resolved: their norms, branches and sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lensbridge.native.multiplier import Constant, Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts.branches import AttentionPart, FeedForward, MixerPart
from lensbridge.spec import Residual


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
        begins: the module in it whose input is the stream before the layer, where something else
            comes first (RWKV's first layer has the norm of the embeddings in it).
        pair: the arguments of its forward that are the two streams of a reversible layer, whose
            `residual` is None: there is no one stream that branches add to.
        variant: which of the blocks that the stack describes it is read with.
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
    begins: nn.Module | None = None
    pair: tuple[str, str] | None = None
    variant: int = 0

    @property
    def entrance(self) -> nn.Module:
        """The module whose input is the stream before the layer."""
        if self.begins is not None:
            return self.begins
        return self.module if self.members is None else next(iter(self.members.modules.values()))

    @property
    def is_entered_inside(self) -> bool:
        """Whether other code reads what `entrance` is given: the skip connection, outside of it."""
        return self.entrance is not self.module

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
        is_grid: whether its native values are `[b, y, x, ...]`.
        embeds_batch_first: whether its embeddings are `[b, p, ...]` all the same.
        cycles: how many times a pass runs all layers and then the final norm.
        embed_padding: whether the embedding runs again, on padding that the model adds.
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
    is_grid: bool = False
    embeds_batch_first: bool = False
    cycles: int = 1
    embed_padding: bool = False

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

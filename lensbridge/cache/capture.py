"""What is kept of a run: callbacks that capture activations, and their gradients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooks.callbacks import Callback, Hook
from lensbridge.inputs.positions import ColumnOwner, column_owner, mask_of
from lensbridge.inputs.prepare import Prepared
from lensbridge.native.parts import ResolvedModel
from lensbridge.sites.modules import ModuleSite, of_call
from lensbridge.sites.site import Site
from lensbridge.tensors.positions import Count, padded, token_positions
from lensbridge.tensors.slices import PosSlice, RowColumns, as_index

GRAD = "_grad"
"""The end of the name of a gradient, after the name of its point."""


def version_of(tensor: Tensor) -> int:
    """How often a tensor's memory was written to; -1 for inference tensors, which do not count."""
    return -1 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class Keep:
    """How captured activations are kept.

    Args:
        device: the device to move them to, or None to leave them.
        dtype: the dtype to convert them to, or None to leave it.
        pos_slice: which positions: an index (the axis stays), "last", a slice, its
            `(start, stop, step)` as a tuple, or a list of indices.
        detach: whether to detach them from the autograd graph.
        count: whether positions count the tokens of each text or columns of the padded batch.
    """

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    pos_slice: PosSlice = None
    detach: bool = True
    count: Count = "tokens"

    def index(self) -> Any:
        """The position slice as an index that keeps the axis."""
        pos = token_positions(self.pos_slice, None, self.count)
        assert not isinstance(pos, RowColumns)
        if isinstance(pos, int):
            return slice(pos, None) if pos == -1 else slice(pos, pos + 1)
        return as_index(pos)

    def capture(
        self, value: Tensor, axes: str, alone: bool, chosen: RowColumns | None = None
    ) -> Tensor:
        """The tensor to keep for a value.

        Args:
            value: the activation during the run.
            axes: its axes, to find the position axis.
            alone: whether the rest of the tensor of which it may be a slice is not kept. Keeping a
                view would then waste memory.
            chosen: the columns of each row that `pos_slice` means, where rows are padded.
        """
        kept = value.detach() if self.detach and value.requires_grad else value
        axis = None if self.pos_slice is None else position_axis(axes)
        if axis is not None and chosen is None:
            chosen = self._by_row(kept, axis, batch_axis(axes))
        if axis is not None and chosen is not None:
            kept = chosen.of(kept, axis, batch_axis(axes)).clone(
                memory_format=torch.contiguous_format
            )
        elif axis is not None:
            self._check(kept.shape[axis])
            kept = kept[(slice(None),) * axis + (self.index(),)].clone()
        elif alone and kept.untyped_storage().nbytes() > kept.nbytes:
            kept = kept.clone()
        if self.device is not None or self.dtype is not None:
            kept = kept.to(device=self.device, dtype=self.dtype)
        return kept

    def _by_row(self, value: Tensor, axis: int, batch: int | None) -> RowColumns | None:
        """Columns that are asked for row by row; None where all rows have the same ones."""
        rows = 1 if batch is None else value.shape[batch]
        found = token_positions(self.pos_slice, None, self.count, shape=(rows, value.shape[axis]))
        return found if isinstance(found, RowColumns) else None

    def _check(self, count: int) -> None:
        """Refuse a position that does not exist.

        Raises:
            InputError: the position does not exist.
        """
        found = token_positions(self.pos_slice, None, self.count)
        asked = found if isinstance(found, list) else [found]
        for pos in asked:
            if isinstance(pos, int) and not -count <= pos < count:
                raise InputError(f"pos_slice={pos}: there are {count} positions, 0 to {count - 1}.")


def position_axis(axes: str) -> int | None:
    """The axis of positions: `p`, or the query axis of a pattern; None if there is neither.

    Example:
        >>> position_axis("b p h d"), position_axis("b h q k"), position_axis("b m")
        (1, 2, None)
    """
    letters = axes.split()
    return next((letters.index(one) for one in "pq" if one in letters), None)


def batch_axis(axes: str) -> int | None:
    """The axis of rows, which has size 1 where they share a value; None if there is none.

    Example:
        >>> batch_axis("b p m"), batch_axis("1 h q k"), batch_axis("s b p m"), batch_axis("t m")
        (0, 0, 1, None)
    """
    letters = axes.split()
    return next((letters.index(one) for one in "b1" if one in letters), None)


@dataclass
class Collector:
    """Callbacks that fill a dictionary with the activations of a run.

    Args:
        sites: of the model.
        names: which points.
        keep: how.
        native: the model, which says of which text the columns of a point are. None: all columns
            are tokens.
    """

    sites: Mapping[str, Site]
    names: Sequence[str]
    keep: Keep
    native: ResolvedModel | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    graph: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._asked = frozenset(self.names)
        self._owners: dict[str, ColumnOwner] = {}
        self._masks: dict[ColumnOwner, Tensor | None] = {}
        if self.native is not None and self.keep.pos_slice is not None:
            placed = [one for one in self.names if _may_have_positions(self.sites[one])]
            self._owners = {name: column_owner(self.native, name) for name in placed}
            self._check_modules(self.native)

    def _check_modules(self, native: ResolvedModel) -> None:
        """Refuse positions of texts at modules of a model with several stacks.

        Raises:
            InputError: it is not known to which stack a module belongs.
        """
        apart = [name for name in self.names if isinstance(self.sites[name], ModuleSite)]
        if apart and native.towers and self.keep.count == "tokens":
            raise InputError(
                f"pos_slice counts the tokens of a text, and which text the columns of {apart[0]} "
                "belong to is not known. Pass count='columns', or name the point as in "
                "model.hook_names."
            )

    def callbacks(self, required: bool, with_grad: bool) -> list[Callback]:
        """A reader for each name; with gradients, also a callback that joins the graph."""
        found = []
        for name in self.names:
            if with_grad:
                found.append(Callback(name, "edit", self._join_graph(name), name, required))
            found.append(Callback(name, "read", self._reader(name), name, required))
        if found and self._owners:
            found[0].check = self._note
        return found

    def _note(self, prepared: Prepared, new: int) -> None:
        """Note the padding of an input, and refuse positions that it lacks, before it is run."""
        for owner in dict.fromkeys(self._owners.values()):
            self._masks[owner] = mask_of(owner, prepared)
            tokens = prepared.tokens if owner == "text" and prepared.cache is None else None
            shape = None if tokens is None else (tokens.shape[0], tokens.shape[1])
            real = padded(self._masks[owner])
            token_positions(self.keep.pos_slice, real, self.keep.count, shape=shape)

    def _chosen(self, name: str, value: Tensor, axes: str) -> RowColumns | None:
        """The columns of each row that `pos_slice` means; None where positions are columns.

        Raises:
            InputError: there is padding, and the value has other columns than the text.
        """
        mask = self._masks.get(self._owners[name]) if name in self._owners else None
        axis = position_axis(axes)
        if mask is None or axis is None or self.keep.count == "columns":
            return None
        size = value.shape[axis]
        if size > mask.shape[1]:
            raise InputError(
                f"{name} has {size} columns and the text {mask.shape[1]}, some of them padding, so "
                "it is not known which are its tokens. Pass count='columns'."
            )
        found = token_positions(self.keep.pos_slice, padded(mask, size))
        return found if isinstance(found, RowColumns) else None

    def _reader(self, name: str) -> Callable[[Tensor], None]:
        if isinstance(self.sites[name], ModuleSite):
            return self._reader_of_calls(name)
        site, keep = self.sites[name], self.keep
        tensors, versions, axes = self.tensors, self.versions, site.axes
        alone = site.may_be_part and (len(site.shares) == 1 or not site.shares <= self._asked)

        def read(value: Tensor) -> None:
            chosen = self._chosen(name, value, axes) if self._masks else None
            kept = keep.capture(value, axes, alone, chosen)
            tensors[name] = kept
            versions[name] = version_of(kept)

        return read

    def _reader_of_calls(self, name: str) -> Callable[[Tensor], None]:
        """A reader at a module of the model, which may be called several times in a run."""
        site, seen = self.sites[name], 0

        def read(value: Tensor) -> None:
            nonlocal seen
            full, axes = of_call(name, seen), site.axes
            seen += 1
            copied = value.clone() if self.keep.detach else value  # a later module may overwrite it
            chosen = self._chosen(name, value, axes) if self._masks else None
            self.tensors[full] = self.keep.capture(copied, axes, False, chosen)
            self.versions[full] = version_of(self.tensors[full])

        return read

    def _join_calls(self, name: str) -> Callable[[Tensor, Hook], Tensor]:
        seen = 0

        def join(value: Tensor, hook: Hook) -> Tensor:
            nonlocal seen
            full = of_call(name, seen)
            seen += 1
            if not value.is_floating_point():
                return value
            self.graph[full] = value if value.requires_grad else value.requires_grad_()
            return self.graph[full].clone()  # the model may write into what it goes on with

        return join

    def _join_graph(self, name: str) -> Callable[[Tensor, Hook], Tensor | None]:
        if isinstance(self.sites[name], ModuleSite):
            return self._join_calls(name)

        def join(value: Tensor, hook: Hook) -> Tensor | None:
            if value.is_floating_point():  # choices of experts have no gradient
                self.graph[name] = value if value.requires_grad else value.requires_grad_()
            return None

        return join

    def backward(self, output: Tensor, again: bool = False) -> None:
        """Gradients of a scalar at every point, kept under `<name>_grad`.

        The `.grad` of parameters does not change.

        Args:
            output: the scalar.
            again: whether the gradients of another scalar follow, for which the graph is kept.
        """
        names, points = list(self.graph), list(self.graph.values())
        grads = torch.autograd.grad(output, points, retain_graph=again, allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            given = torch.zeros_like(self.graph[name]) if grad is None else grad
            axes = self.sites[name].axes
            kept = self.keep.capture(given, axes, True, self._chosen(name, given, axes))
            self.tensors[name + GRAD] = kept
            self.versions[name + GRAD] = version_of(kept)
        if not again:
            self.graph.clear()


def _may_have_positions(site: Site) -> bool:
    """Whether an axis of a point counts positions; of a module's, only a run shows the axes."""
    return isinstance(site, ModuleSite) or position_axis(site.axes) is not None


Place: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


def place_of(tensor: Tensor) -> Place:
    """A key that is equal for two tensors with the same memory and layout."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype

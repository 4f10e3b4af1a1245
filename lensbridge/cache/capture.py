"""What is kept of a run: callbacks that capture activations, and their gradients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooks.callbacks import Callback, Hook
from lensbridge.sites.site import Site
from lensbridge.tensors.slices import PosSlice, as_index

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
        pos_slice: which positions: an index (the axis stays), a slice, its `(start, stop, step)`
            as a tuple, or a list of indices.
        detach: whether to detach them from the autograd graph.
    """

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    pos_slice: PosSlice = None
    detach: bool = True

    def index(self) -> Any:
        """The position slice as an index that keeps the axis."""
        pos = self.pos_slice
        if isinstance(pos, int):
            return slice(pos, None) if pos == -1 else slice(pos, pos + 1)
        return as_index(pos)

    def capture(self, value: Tensor, axes: str, alone: bool) -> Tensor:
        """The tensor to keep for a value.

        Args:
            value: the activation during the run.
            axes: its axes, to find the position axis.
            alone: whether the rest of the tensor of which it may be a slice is not kept. Keeping a
                view would then waste memory.
        """
        kept = value.detach() if self.detach and value.requires_grad else value
        axis = None if self.pos_slice is None else position_axis(axes)
        if axis is not None:
            self._check(kept.shape[axis])
            kept = kept[(slice(None),) * axis + (self.index(),)].clone()
        elif alone and kept.untyped_storage().nbytes() > kept.nbytes:
            kept = kept.clone()
        if self.device is not None or self.dtype is not None:
            kept = kept.to(device=self.device, dtype=self.dtype)
        return kept

    def _check(self, count: int) -> None:
        """Refuse a position that does not exist.

        Raises:
            InputError: the position does not exist.
        """
        pos = self.pos_slice
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


@dataclass
class Collector:
    """Callbacks that fill a dictionary with the activations of a run."""

    sites: Mapping[str, Site]
    names: Sequence[str]
    keep: Keep
    tensors: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    graph: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._asked = frozenset(self.names)

    def callbacks(self, required: bool, with_grad: bool) -> list[Callback]:
        """A reader for each name; with gradients, also a callback that joins the graph."""
        found = []
        for name in self.names:
            if with_grad:
                found.append(Callback(name, "edit", self._join_graph(name), name, required))
            found.append(Callback(name, "read", self._reader(name), name, required))
        return found

    def _reader(self, name: str) -> Callable[[Tensor], None]:
        site, keep = self.sites[name], self.keep
        tensors, versions, axes = self.tensors, self.versions, site.axes
        alone = site.may_be_part and (len(site.shares) == 1 or not site.shares <= self._asked)

        def read(value: Tensor) -> None:
            kept = keep.capture(value, axes, alone)
            tensors[name] = kept
            versions[name] = version_of(kept)

        return read

    def _join_graph(self, name: str) -> Callable[[Tensor, Hook], None]:
        def join(value: Tensor, hook: Hook) -> None:
            self.graph[name] = value if value.requires_grad else value.requires_grad_()

        return join

    def backward(self, output: Tensor) -> None:
        """Gradients of a scalar at every point, kept under `<name>_grad`.

        The `.grad` of parameters does not change.
        """
        names = list(self.graph)
        grads = torch.autograd.grad(output, [self.graph[n] for n in names], allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            given = torch.zeros_like(self.graph[name]) if grad is None else grad
            kept = self.keep.capture(given, self.sites[name].axes, alone=True)
            self.tensors[name + GRAD] = kept
            self.versions[name + GRAD] = version_of(kept)
        self.graph.clear()


Place: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


def place_of(tensor: Tensor) -> Place:
    """A key that is equal for two tensors with the same memory and layout."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype

"""`Slice`: an index along one axis, given as an int, a tuple, a list, a tensor, or None for all."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from lensbridge.errors import InputError

SliceInput: TypeAlias = (
    "int | tuple[int | None, ...] | Sequence[int] | Tensor | np.ndarray[Any, Any] | slice | Slice "
    "| None"
)


class Slice:
    """One index along one axis.

    Args:
        input_slice: an int takes one element and drops the axis; a tuple is `(start, stop, step)`;
            a list, array or tensor of ints takes those; None takes all.

    Example:
        >>> import torch
        >>> Slice((1, 3)).apply(torch.arange(5))
        tensor([1, 2])
        >>> Slice(2).apply(torch.arange(10).view(2, 5), dim=1)
        tensor([2, 7])
    """

    def __init__(self, input_slice: SliceInput = None) -> None:
        self.slice: Any
        self.mode: str
        if isinstance(input_slice, Slice):
            self.slice, self.mode = input_slice.slice, input_slice.mode
        else:
            self.slice, self.mode = _parsed(input_slice)

    @classmethod
    def unwrap(cls, slice_input: SliceInput) -> "Slice":
        """A `Slice` of what may be one already; an int becomes a list, so that the axis stays."""
        if isinstance(slice_input, Slice):
            return slice_input
        return cls([slice_input] if isinstance(slice_input, int) else slice_input)

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The part of a tensor along an axis."""
        index = [slice(None)] * tensor.ndim
        index[dim] = self.slice
        return tensor[tuple(index)]

    def indices(self, max_ctx: int | None = None) -> Any:
        """The indices that it takes, as an array.

        Raises:
            InputError: `max_ctx` is not given, and it is not one index.
        """
        if self.mode == "int":
            return np.array([self.slice])
        if max_ctx is None:
            raise InputError("This slice needs the size of the axis: indices(max_ctx).")
        return np.arange(max_ctx)[self.slice]

    def __repr__(self) -> str:
        return f"Slice({self.slice!r})"


def _parsed(given: Any) -> tuple[Any, str]:
    if given is None:
        return slice(None), "identity"
    if isinstance(given, slice):
        return given, "slice"
    if isinstance(given, tuple):
        return slice(*given), "slice"
    if isinstance(given, int | np.integer):
        return int(given), "int"
    if isinstance(given, Tensor):
        return given.cpu().numpy(), "array"
    if isinstance(given, Sequence | np.ndarray):
        return np.array(given), "array"
    raise InputError(
        f"A slice is an int, a tuple, a list or tensor of ints, or None, not {given!r}."
    )


def position_axis(name: str, ndim: int) -> int:
    """The axis of positions: -3 where heads follow it, -2 otherwise (also queries of a pattern)."""
    last = name.rpartition(".")[2]
    per_head = {f"hook_{one}" for one in ("q", "k", "v", "z", "result", "rot_q", "rot_k")}
    return ndim - (3 if last in per_head else 2)


C = TypeVar("C", bound=type)


def taking_slices(cls: C) -> C:
    """A class whose methods take a `Slice` for every parameter that is called `..._slice`."""
    for name in dir(cls):
        method = getattr(cls, name)
        if name.startswith("_") or not callable(method) or isinstance(method, type):
            continue
        if any(one.endswith("_slice") for one in signature(method).parameters):
            setattr(cls, name, _with_plain_slices(method))
    return cls


def _with_plain_slices(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        return method(*map(_plain, args), **{key: _plain(one) for key, one in kwargs.items()})

    return run


def _plain(value: Any) -> Any:
    """What a `Slice` was made of; any other value is returned as it is."""
    if not isinstance(value, Slice):
        return value
    if value.mode != "array":
        return value.slice
    chosen = value.slice.nonzero()[0] if value.slice.dtype == bool else value.slice
    return chosen.tolist()

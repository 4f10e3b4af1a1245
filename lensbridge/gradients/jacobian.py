"""Jacobians of one point by another: rows in chunks, from copies of the input in one batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache.capture import position_axis
from lensbridge.errors import InputError
from lensbridge.gradients.backward import differentiable
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback, Hook
from lensbridge.inputs.positions import column_owner, mask_of
from lensbridge.inputs.prepare import Prepared
from lensbridge.native.parts import ResolvedModel
from lensbridge.points.names import Name
from lensbridge.tensors.positions import Count, padded, token_positions
from lensbridge.tensors.slices import PosSlice, RowColumns, taken

CHUNK_TOKENS = 1024
"""How many positions one pass of a Jacobian has, over all copies of the input."""


@dataclass
class End:
    """One end of a Jacobian: a point and which of its positions.

    Args:
        name: canonical name of the point.
        batch: the axis of examples.
        axis: the axis of positions, counted from the end, or None.
        positions: which positions.
        value: the activation, once the model has run.
    """

    name: str
    batch: int
    axis: int | None
    positions: PosSlice | RowColumns
    value: Tensor | None = None

    def for_input(self, native: ResolvedModel, prepared: Prepared, count: Count) -> "End":
        """The end with its positions as columns of an input."""
        assert not isinstance(self.positions, RowColumns)
        mask = padded(mask_of(column_owner(native, self.name), prepared))
        return replace(self, positions=token_positions(self.positions, mask, count, "positions"))

    @classmethod
    def of(cls, model: HookedModel, name: Name, positions: PosSlice) -> "End":
        """An end at a point.

        Raises:
            InputError: it has no axis of examples, or none of positions and some were asked for.
        """
        full = model.vocabulary.canonical(name)
        letters = model.engine.sites[full].axes.split()
        shown = f"{full} has axes {' '.join(letters)!r}"
        if "b" not in letters:
            raise InputError(f"{shown}, none of them the batch, so a Jacobian of it is not known.")
        differentiable([full], required=True)
        rest = ["b", *(one for one in letters if one != "b")]
        axis = position_axis(" ".join(rest))
        if positions is not None and axis is None:
            raise InputError(f"{shown}, none of them positions: leave positions out.")
        from_end = None if axis is None else axis - len(rest)
        return cls(full, letters.index("b"), from_end, positions)

    def callback(self) -> Callback:
        def keep(value: Tensor, hook: Hook) -> Tensor:
            self.value = value if value.requires_grad else value.requires_grad_()
            return self.value

        return Callback(self.name, "edit", keep, self.name)

    @property
    def live(self) -> Tensor:
        assert self.value is not None
        return self.value

    def taken(self, value: Tensor) -> Tensor:
        """The chosen positions of a value, with the axis of examples first."""
        value = value.movedim(self.batch, 0)
        if self.axis is None:
            return value
        if isinstance(self.positions, RowColumns):
            copies = len(value) // len(self.positions.columns)
            columns = RowColumns(self.positions.columns.repeat(copies, 1))
            found = columns.of(value, self.axis, 0)
            return found.select(self.axis, 0) if self.positions.single else found
        try:
            return taken(value, self.positions, self.axis)
        except IndexError as error:
            raise InputError(
                f"{self.name} has {value.shape[self.axis]} positions; {self.positions!r} is out of "
                "range."
            ) from error


def jacobian_of(
    model: HookedModel,
    prepared: Prepared,
    target: End,
    source: End,
    chunk: int | None,
    forward: dict[str, Any],
) -> Tensor:
    """The Jacobian, a chunk of rows for each backward pass.

    The batch holds a copy of the input for each row of a chunk.
    """
    batch, tokens = _size(prepared)
    copies = max(1, CHUNK_TOKENS // tokens) if chunk is None else chunk
    if copies < 1:
        raise InputError(f"chunk is 1 or more, not {chunk}.")
    given, kwargs = _repeated(prepared, copies)
    callbacks = [source.callback(), target.callback()]
    model.run_callbacks(callbacks, given, None, **kwargs, **forward)
    wanted = target.taken(target.live)
    shape = wanted.shape[1:]
    rows = wanted.reshape(copies, batch, -1)
    blocks = [source.taken(block) for block in _blocks(rows, source, target, batch)]
    found = torch.cat([one.unflatten(0, (-1, batch)) for one in blocks])[: rows.shape[-1]]
    return found.transpose(0, 1).unflatten(1, tuple(shape)) if shape else found[0]


def _blocks(rows: Tensor, source: End, target: End, batch: int) -> Iterator[Tensor]:
    """Shapes: rows `[copy, batch, row]` -> gradients `[copy * batch, *source]`, one at a time."""
    copies, _, count = rows.shape
    for start in range(0, count, copies):
        index = torch.arange(copies, device=rows.device)
        column = (start + index).clamp(max=count - 1)
        picked = rows[index, :, column].sum()
        (grad,) = torch.autograd.grad(picked, [source.live], retain_graph=True, allow_unused=True)
        if grad is None:
            raise InputError(
                f"{target.name} does not depend on {source.name}, which is computed after it."
            )
        yield grad


def _size(prepared: Prepared) -> tuple[int, int]:
    """How many examples there are, and how many positions over all examples."""
    whole = prepared.tokens if prepared.tokens is not None else prepared.embeds
    if whole is None:
        first = next(v for v in prepared.kwargs.values() if isinstance(v, Tensor))
        return first.shape[0], CHUNK_TOKENS
    return whole.shape[0], whole.shape[0] * whole.shape[1]


def _repeated(prepared: Prepared, copies: int) -> tuple[Any, dict[str, Any]]:
    """The input and its keywords, repeated for each copy."""
    if prepared.cache is not None:
        raise InputError(
            "A Jacobian runs copies of its input, and a key/value cache cannot be copied: run the "
            "whole input without past_key_values."
        )
    batch, _ = _size(prepared)

    def copied(value: Any) -> Any:
        many = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch
        return value.repeat(copies, *[1] * (value.ndim - 1)) if many else value

    kwargs = {name: copied(value) for name, value in prepared.kwargs.items()}
    whole = prepared.tokens if prepared.tokens is not None else prepared.embeds
    return (kwargs, {}) if whole is None else (copied(whole), kwargs)

"""Weight edits: new values for named weights, written into the parameters, and taken back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.errors import ShapeError, WeightError, suggest
from lensbridge.processing.matrix import Matrix, untie
from lensbridge.processing.undo_log import UndoLog
from lensbridge.weights.entry import Weight

if TYPE_CHECKING:
    from lensbridge.processing.methods import ProcessingMethods

NewWeight: TypeAlias = "Tensor | float | Callable[[Tensor], Tensor]"
"""A weight's new values: a tensor of its shape, a number for all of it, or a function of a copy of
the present ones."""


@dataclass
class Change:
    """What an edit wrote; `over` once it can be undone."""

    undo_log: UndoLog = field(default_factory=UndoLog)
    over: bool = False

    def undo(self) -> None:
        """Restore every byte."""
        self.undo_log.undo()


class WeightEdit:
    """Weights that `model.edit_weights` changed, and the way back.

    Attributes:
        names: the weights.
    """

    def __init__(self, model: ProcessingMethods, names: tuple[str, ...], change: Change) -> None:
        self.names = names
        self._model = model
        self._change = change

    def __repr__(self) -> str:
        state = "in force" if self.in_force else "over"
        return f"WeightEdit({', '.join(self.names)}; {state})"

    @property
    def in_force(self) -> bool:
        """Whether it can still be undone."""
        return any(one is self._change for one in self._model._rewritings)

    def undo(self) -> None:
        """Put the earlier weights back, byte for byte.

        Raises:
            WeightError: it is undone or kept already, or a later change of weights is in force.
        """
        self._require()
        if self._model._rewritings[-1] is not self._change:
            raise WeightError(
                f"The edit of {', '.join(self.names)} is below a later change of weights, which is "
                "in force. Undo that one first, or leave its block."
            )
        self._change.over = True
        self._model._take_back()

    def keep(self) -> None:
        """Let go of the earlier weights: the memory that they take is free, and undo raises.

        Raises:
            WeightError: it is undone or kept already.
        """
        self._require()
        self._model._rewritings[:] = [
            one for one in self._model._rewritings if one is not self._change
        ]
        self._change.undo_log.forget()

    def _require(self) -> None:
        if not self.in_force:
            raise WeightError(f"The edit of {', '.join(self.names)} is undone or kept already.")


def change_of(
    model: ProcessingMethods, weights: Mapping[str, NewWeight], untied: bool
) -> tuple[tuple[str, ...], Change]:
    """Write new values; nothing is written if one of them cannot be.

    Raises:
        WeightError: there is no such weight, it cannot be written to, or two names of one parameter
            would get different values.
        ShapeError: a value of another shape.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise WeightError(
            "Edited weights are a mapping from names to new values, such as "
            f"{{'blocks.0.mlp.W_out': W}}, not {weights!r}."
        )
    known = {name: _known(model, name) for name in weights}
    for name, one in known.items():
        _require_writable(name, one)
    values = {name: _value(name, known[name], weights[name]) for name in weights}
    change = Change()
    try:
        with torch.no_grad():
            if untied:
                untie(model.native, change.undo_log)
            for name, value in values.items():
                _write(name, known[name], value, change.undo_log)
            _require_agreement(known, values)
    except BaseException:
        change.undo()
        raise
    return tuple(weights), change


def _known(model: ProcessingMethods, name: str) -> Weight:
    entries = model.components.weights
    if name not in entries:
        raise WeightError(f"There is no weight {name!r}.{suggest(str(name), entries)}")
    return entries[name]


def _require_writable(name: str, weight: Weight) -> None:
    held = weight.source.held
    if not held.writable:
        raise WeightError(f"{name} cannot be edited. {held.why}")
    if weight.source.stored is not None:
        return
    matrix = _matrix(weight)
    if matrix is None or not matrix.takes_bias():
        kind = type(weight.source.module).__name__
        raise WeightError(
            f"{name} cannot be edited: the {kind} of this model has no {weight.source.parameter}, "
            "and would not use one."
        )


def _matrix(weight: Weight) -> Matrix | None:
    linear = weight.source.linear
    return None if linear is None else Matrix(linear.module, "weight", "bias", linear.transposed)


def _value(name: str, weight: Weight, new: NewWeight) -> Tensor:
    now = _plain(weight.read())
    found: Any = new(now.clone()) if callable(new) and not isinstance(new, Tensor) else new
    if isinstance(found, int | float) and not isinstance(found, bool):
        return torch.full_like(now, found)
    value = torch.as_tensor(found)
    if tuple(value.shape) != tuple(now.shape):
        raise ShapeError(
            f"{name} has shape {list(now.shape)}; the new value has {list(value.shape)}."
        )
    return value.detach()


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().as_subclass(Tensor)


def _write(name: str, weight: Weight, value: Tensor, log: UndoLog) -> None:
    source = weight.source
    if source.stored is None:
        _add_bias(weight, log)
    parameter = source.stored
    assert parameter is not None
    log.copy(parameter)
    value = value.to(parameter.device)
    now = _plain(weight.read())
    if now.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
        now.copy_(value)
    elif source.assign is not None:
        source.assign(parameter.data, value)
    else:
        raise WeightError(
            f"{name} is computed from {source.parameter} of a {type(source.module).__name__} and "
            "cannot be edited. Change that parameter, in model.hf_model."
        )


def _add_bias(weight: Weight, log: UndoLog) -> None:
    """Give a projection without a bias one of zeros."""
    matrix = _matrix(weight)
    assert matrix is not None
    like, linear = matrix.parameter, weight.source.linear
    assert linear is not None
    zeros = torch.zeros(linear.n_out, dtype=like.dtype, device=like.device)
    log.put(matrix.module, "bias", nn.Parameter(zeros, like.requires_grad))


def _require_agreement(known: Mapping[str, Weight], values: Mapping[str, Tensor]) -> None:
    """Refuse values of names that share a parameter where one would undo another."""
    owners: dict[int, list[str]] = {}
    for name, one in known.items():
        owners.setdefault(id(one.source.stored), []).append(name)
    for names in (names for names in owners.values() if len(names) > 1):
        for name in names:
            now = _plain(known[name].read())
            if not torch.equal(now, values[name].to(now)):
                raise WeightError(
                    f"{' and '.join(names)} are one parameter of this model, and the new values "
                    "differ. Give one of them, or pass untied=True to give the head a weight of "
                    "its own."
                )

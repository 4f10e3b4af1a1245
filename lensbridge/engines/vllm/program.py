"""What is done to one request: declared interventions and the points that are kept, in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensbridge.hooked_model import HookedModel
from lensbridge.interventions.callbacks import plans_of
from lensbridge.interventions.columns import Window
from lensbridge.interventions.document import Store, read, written
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.plan import Plan

FORMAT = "lensbridge.vllm/1"


@dataclass(frozen=True)
class Act:
    """One step at one point.

    Args:
        name: the point.
        intervention: what is done; None: the value is kept.
        label: what it is kept under.
        alone: whether the intervention is of one request, and not of a batch of them.
    """

    name: str
    intervention: Intervention | None = None
    label: str = ""
    alone: bool = False


def to_text(acts: Sequence[Act]) -> str:
    """Steps as JSON, in their order."""
    store = Store()
    listed = [
        {"keep": one.name, "as": one.label}
        if one.intervention is None
        else {"at": one.name, "edit": written(one.intervention, store), "alone": one.alone}
        for one in acts
    ]
    return json.dumps({"format": FORMAT, "acts": listed}, allow_nan=False)


def from_text(text: str) -> list[Act]:
    """Steps from what `to_text` wrote."""
    store = Store()
    return [
        Act(one["keep"], label=one["as"])
        if "keep" in one
        else Act(one["at"], read(one["edit"], store), alone=one["alone"])
        for one in json.loads(text)["acts"]
    ]


@dataclass(frozen=True)
class Example:
    """Which row of a batch a request is, for interventions that have values for each row."""

    row: int
    rows: int
    prompt: int


@dataclass(frozen=True)
class Place:
    """Where some columns of a request are in a pass.

    Args:
        start: the first column.
        step: passes of the request before this one.
    """

    start: int
    step: int


@dataclass(frozen=True)
class Step:
    """One step at a point in a worker: a plan, or the label that the value is kept under."""

    plan: Plan | None
    label: str = ""
    alone: bool = False


@dataclass(frozen=True)
class PointProgram:
    """The steps at one point."""

    steps: Sequence[Step]

    @property
    def edits(self) -> bool:
        """Whether any of them may change the value."""
        return any(step.plan is not None for step in self.steps)

    def chain(
        self, example: Example, place: Place, keep: Callable[[str, int, Tensor], None]
    ) -> RequestChain:
        """The chain of one request in one pass."""
        return RequestChain(self, example, place, keep)


@dataclass(frozen=True)
class RequestChain:
    """The steps at a point for one request in one pass."""

    program: PointProgram
    example: Example
    place: Place
    keep: Callable[[str, int, Tensor], None]

    @property
    def edits(self) -> bool:
        """Whether any step may change the value."""
        return self.program.edits

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """The value after all steps; None if there is no edit. Shapes: `[1, pos, ...]`"""
        current = value
        for step in self.program.steps:
            if step.plan is None:
                self.keep(step.label, self.place.start, current)
            else:
                current = self._edited(step.plan, step.alone, current.clone())
        return current if self.edits else None

    def _edited(self, plan: Plan, alone: bool, value: Tensor) -> Tensor:
        """The value after an intervention, which is given all rows where it knows them apart."""
        rows = 1 if alone or not knows_rows(plan.intervention) else self.example.rows
        row = self.example.row if rows > 1 else 0
        start = self.place.start
        window = Window(rows, start, start + value.shape[1], self.example.prompt)
        every = value.expand(rows, *value.shape[1:]).clone() if rows > 1 else value
        edited = plan.edited(every, window, self.place.step)
        return edited[row : row + 1].to(value.dtype)


def knows_rows(one: Intervention) -> bool:
    """Whether an intervention may do different things to the rows of a batch."""
    if one.examples is not None:
        return True
    members: dict[str, Any] = vars(one)
    for name, value in members.items():
        if name == "examples" and value is not None:
            return True
        if name in ("positions", "keys") and isinstance(value, tuple):
            if any(isinstance(row, tuple) for row in value):
                return True
        elif (isinstance(value, Tensor) and name != "subspace" and value.ndim > 1) or hasattr(
            value, "keys"
        ):
            return True
    return False


def points_of(model: HookedModel, acts: Sequence[Act]) -> dict[str, PointProgram]:
    """The steps of a program by point, with interventions checked against a model.

    Raises:
        InputError: an intervention does not fit.
        EditError: a point cannot be edited.
    """
    found: dict[str, list[Step]] = {}
    for one in acts:
        steps = found.setdefault(one.name, [])
        if one.intervention is None:
            steps.append(Step(None, one.label))
        else:
            plans = plans_of(model, one.intervention)
            steps += [Step(plan, alone=one.alone) for plan in plans]
    return {name: PointProgram(steps) for name, steps in found.items()}

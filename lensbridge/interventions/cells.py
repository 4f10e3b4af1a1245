"""Interventions as cells of a sweep: one run for each, in batches where the model allows it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared
from lensbridge.interventions.callbacks import acting, plans_of
from lensbridge.interventions.columns import Window, columns_of
from lensbridge.interventions.input_columns import InputColumns
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.plan import Plan
from lensbridge.interventions.windows import whole_window


def cells_of(
    model: HookedModel,
    interventions: Iterable[Intervention],
    attention_mask: Tensor | None = None,
) -> "list[InterventionEdit]":
    """Cells for `model.sweep`, one for each intervention, to be used for several inputs.

    `model.sweep` also takes the interventions themselves, and makes a cell of several of them.

    Args:
        model: the model.
        interventions: each at one point.
        attention_mask: of the input that is swept, if it has padding.

    Raises:
        InputError: an intervention is at several points, or does not fit the model.

    Example:
        >>> import lensbridge
        >>> from lensbridge.interventions import Zero, cells_of
        >>> model = lensbridge.load("demo")
        >>> ids = model.to_tokens("The Eiffel Tower is in the city of")
        >>> cells = cells_of(model, [Zero(("z", 1), heads=head) for head in range(4)])
        >>> model.sweep(ids, cells, lambda logits: logits[0, -1].max()).values.shape
        torch.Size([4])
    """
    plans = [_one_plan(model, one) for one in interventions]
    return [InterventionEdit(plan.name, plan, attention_mask) for plan in plans]


def edits_of(
    model: HookedModel, one: Intervention, prepared: Prepared, several: bool
) -> "list[InterventionEdit]":
    """The edits of an intervention, one for each of its points, checked against the input that is
    swept.

    Args:
        model: the model.
        one: the intervention.
        prepared: the input.
        several: whether it may be at several points.

    Raises:
        InputError: it does not fit the model or the input.
    """
    plans = plans_of(model, *acting(one)) if several else [_one_plan(model, one)]
    return [_edit(plan, prepared) for plan in plans]


def _edit(plan: Plan, prepared: Prepared) -> "InterventionEdit":
    plan.check(prepared, 0)
    mask = plan.mask(prepared)
    first = _first(plan, plan.extent(prepared))
    keys_mask, special = plan.keys_mask(prepared), plan.special_columns(prepared)
    return InterventionEdit(plan.name, plan, mask, first, keys_mask, special)


def _one_plan(model: HookedModel, one: Intervention) -> Plan:
    (one,) = acting(one)
    plans = plans_of(model, one)
    if len(plans) != 1:
        raise InputError(
            f"A cell is of one point, and {one.site!r} means {len(plans)}: {_some(plans)}. Make an "
            "intervention for each of them; or, for all of them in one run, a list of it as a cell."
        )
    return plans[0]


def _some(plans: Sequence[Plan]) -> str:
    return ", ".join([plan.name for plan in plans[:3]] + ["..."] * (len(plans) > 3))


@dataclass(frozen=True, eq=False)
class InterventionEdit:
    """What an intervention does at its point, as an edit of a sweep.

    Args:
        point: canonical name of the point.
        plan: the intervention there.
        mask: `[batch, column]` of the point's columns, or None where nothing is masked.
        first: the first column that it changes; 0 where that is not known.
        keys_mask: that of the columns of another text, where its keys are.
        special: `[batch, column]`, which of the columns hold special tokens.
    """

    point: str
    plan: Plan
    mask: Tensor | None = None
    first: int = 0
    keys_mask: Tensor | None = None
    special: Tensor | None = None

    def apply(self, activation: Tensor) -> Tensor:
        """The activation after the intervention."""
        window = whole_window(
            self.plan.place.axes, activation, self.mask, self.keys_mask, self.special
        )
        return self.plan.edited(activation, window, 0)

    def first_position(self, axes: Sequence[str]) -> int:
        """The first column that the intervention changes."""
        return self.first

    @property
    def mixes_positions(self) -> bool:
        """Whether the intervention looks at other positions than those that it changes."""
        return self.plan.intervention.mixes_positions


def _first(plan: Plan, extent: InputColumns | None) -> int:
    """The first column that an intervention changes: a sweep need not run those before it."""
    axes = plan.place.axes
    if extent is None or axes.position is None or axes.letters[axes.position] == "k":
        return 0
    window = Window(extent.rows, 0, extent.prompt, extent.prompt, extent.mask)
    columns, inside = columns_of(
        plan.place.positions, window, torch.device("cpu"), plan.place.count
    )
    return int(columns[inside].min()) if bool(inside.any()) else 0

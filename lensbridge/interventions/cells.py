"""Interventions as cells of a sweep: one run for each, in the batches of the sweep engine."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs import Prepared
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.plan import Plan, plans_of
from lensbridge.patching.cell import Cell

if TYPE_CHECKING:
    from lensbridge.model import LensModel


def cells_of(
    model: "LensModel",
    interventions: Iterable[Intervention],
    attention_mask: Tensor | None = None,
) -> list[Cell]:
    """A cell for `model.sweep` from each of some interventions.

    Args:
        model: the model.
        interventions: each at one point.
        attention_mask: of the input that is swept, where it has padding.

    Raises:
        InputError: an intervention at several points, or one that does not fit the model.

    Example:
        >>> import lensbridge
        >>> from lensbridge.interventions import Zero, cells_of
        >>> model = lensbridge.load("demo")
        >>> ids = model.to_tokens("The Eiffel Tower is in the city of")
        >>> cells = cells_of(model, [Zero(("z", 1), heads=head) for head in range(4)])
        >>> model.sweep(ids, cells, lambda logits: logits[0, -1].max()).values.shape
        torch.Size([4])
    """
    return [_cell(_plan(model, one), attention_mask) for one in interventions]


def cell_of(model: "LensModel", one: Any, prepared: Prepared) -> Cell:
    """A cell from an intervention, checked against the input that is swept.

    Raises:
        InputError: no intervention, one at several points, or one that fits model or input not.
    """
    if not isinstance(one, Intervention):
        raise InputError(
            f"{one!r} is no cell: pass a Cell, its (site, slice, source), or an intervention."
        )
    plan = _plan(model, one)
    plan.check(prepared, 0)
    return _cell(plan, prepared.mask)


def _plan(model: "LensModel", one: Intervention) -> Plan:
    plans = plans_of(model, one)
    if len(plans) != 1:
        raise InputError(f"A cell is of one point; {one.site!r} means {len(plans)}.")
    return plans[0]


def _cell(plan: Plan, mask: Tensor | None) -> Cell:
    def apply(activation: Tensor, index: Any, value: Any) -> Tensor:
        return plan.edited(activation, plan.whole(activation, mask), 0)

    return Cell(plan.name, (), None, apply)

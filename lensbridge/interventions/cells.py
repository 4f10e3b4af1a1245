"""Interventions as cells of a sweep: one run for each, in the batches of the sweep engine."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.plan import Plan, plans_of
from lensbridge.patching.cell import Cell, Setter

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
    return [_cell(model, one, attention_mask) for one in interventions]


def _cell(model: "LensModel", one: Intervention, mask: Tensor | None) -> Cell:
    plans = plans_of(model, one)
    if len(plans) != 1:
        raise InputError(f"A cell is of one point; {one.site!r} means {len(plans)}.")
    return Cell(plans[0].name, (), None, _setter(plans[0], mask))


def _setter(plan: Plan, mask: Tensor | None) -> Setter:
    def apply(activation: Tensor, index: Any, value: Any) -> Tensor:
        return plan.edited(activation, plan.whole(activation, mask), 0)

    return apply

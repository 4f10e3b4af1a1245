"""Interventions at the points of a plain module, whose axes only a run shows.

An intervention is planned when the first value comes: then it is known how many axes there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback, Hook
from lensbridge.interventions.axis import Axes
from lensbridge.interventions.callbacks import acting, with_canonical_names
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.plan import Plan
from lensbridge.points.point_names import names_points
from lensbridge.sites.modules import ModuleSite, of_call


def lazy_callbacks(
    model: HookedModel, interventions: "Intervention | Iterable[Intervention]"
) -> list[Callback]:
    """Interventions as callbacks that are planned in the run.

    Raises:
        InputError: something is not an intervention.
        UnknownPointError: no point has the name.
    """
    found = []
    for one in acting(interventions):
        if not isinstance(one, Intervention):
            raise InputError(
                f"{one!r} is no intervention. lensbridge.interventions has Replace, Add, Zero..."
            )
        names = model.vocabulary.select(one.site)
        if isinstance(one.origin, Tensor) and len(names) > 1:
            raise InputError(
                f"{type(one).__name__}: the source is one tensor, but {one.site!r} means "
                f"{len(names)} points. Give a cache, or a mapping from names to tensors."
            )
        required = names_points(one.site)
        origin = with_canonical_names(model, one.origin)
        for name in names:
            run = _Lazy(model, one, name, origin).run
            asked = str(one.site)
            found.append(Callback(name, "edit", run, asked, required, by_row=one.works_by_row))
    return found


@dataclass
class _Lazy:
    """One intervention at one point, planned for each call of the module and number of axes."""

    model: HookedModel
    one: Intervention
    name: str
    origin: Any
    plans: dict[tuple[str, int], Plan] = field(default_factory=dict)

    def run(self, value: Tensor, hook: Hook) -> Tensor:
        """The hook function."""
        key = ("planned", id(self))
        nth = hook.memory.get(key, 0)
        hook.memory[key] = nth + 1
        full = of_call(self.name, nth) if self._is_apart(nth) else self.name
        place = full, value.ndim
        if place not in self.plans:
            self.plans[place] = planned(self.model, self.one, full, value.ndim, self.origin)
        return self.plans[place].run(value, hook)

    def _is_apart(self, nth: int) -> bool:
        """Whether the source has values of its own for this call."""
        held = self.origin
        return held is not None and not isinstance(held, Tensor) and of_call(self.name, nth) in held


def planned(model: HookedModel, one: Intervention, name: str, rank: int, origin: Any) -> Plan:
    """The plan of an intervention for values of so many axes.

    Raises:
        InputError: it asks for axes that are not known there.
    """
    site = model.engine.sites[name]
    assert isinstance(site, ModuleSite)
    site.seen.ranks[name] = rank
    what, shown = f"{type(one).__name__} at {name}", f"its axes are {site.axes}"
    if rank == 0:
        raise InputError(f"{what}: the value is one number, without axes. Edit it with a hook.")
    if (one.neurons is not None or one.subspace is not None) and "u" not in site.axes.split():
        raise InputError(
            f"{what}: neurons or a subspace were given, and it is not known which axis counts "
            f"features or channels ({shown}). Edit it with a hook."
        )
    return Plan.of(model, _in_order(one, Axes(tuple(site.axes.split()))), name, origin)


def _in_order(one: Intervention, axes: Axes) -> Intervention:
    """An intervention whose value, if it has all axes of the point, has them in the order in which
    interventions see them.
    """
    value = getattr(one, "value", None)
    if not isinstance(value, Tensor) or value.ndim != len(axes.letters):
        return one
    ordered: Intervention = one.at(value=axes.ordered(value))
    return ordered

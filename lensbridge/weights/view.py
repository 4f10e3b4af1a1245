"""`View`: attributes of a part of the model, and what to write for those that it does not have."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from lensbridge.elsewhere.hinted import instead
from lensbridge.elsewhere.view import VIEW
from lensbridge.errors import WeightError, suggest
from lensbridge.native.holding import Held
from lensbridge.points.table import POINTS
from lensbridge.tensors.weight_copy import WeightCopy, live_or_copy

V = TypeVar("V", bound="View")


def given(weight: Tensor, held: Held) -> Tensor:
    """A weight as a user gets it: itself where it is plain, else a copy that refuses writes."""
    if held.writable:
        return live_or_copy(weight)
    here = live_or_copy(weight, held.why)
    return here if type(here) is WeightCopy else WeightCopy.of(here.clone(), held.why)


@dataclass(frozen=True)
class PointsHere:
    """The points of a part of a model.

    Args:
        where: what their names begin with: "blocks.1.attn.".
        every: the names of all points of the model.
        explain: what a point is, by its name.
    """

    where: str
    every: Callable[[], Iterable[str]]
    explain: Callable[[str], Any]

    @property
    def names(self) -> set[str]:
        """Their names, without the beginning."""
        here = (one.removeprefix(self.where) for one in self.every() if one.startswith(self.where))
        return {one for one in here if "." not in one}


class View:
    """A part of the model under the field's names.

    `at` is where its points are in the table of points: "blocks.{i}.attn.".
    """

    at: ClassVar[str] = ""
    points_here: ClassVar[PointsHere | None] = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            own = getattr(type(self), name, None)
            if isinstance(own, property):
                return own.fget(self)  # it raised; again, for its own message
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            here = self.points_here
            if here is not None and name in here.names:
                return here.explain(here.where + name)
            raise WeightError(self._without(name))

    def __dir__(self) -> list[str]:
        """What there is in this model: no `W_gate` where the MLP is not gated."""
        points = set() if self.points_here is None else self.points_here.names
        mine = {*super().__dir__()} - {"at", "points_here", "with_points", *self._absent()}
        return sorted(mine | points)

    def with_points(self: V, points: PointsHere | None, part: str = "") -> V:
        """The same view, which also knows its points. They say what they are."""
        if points is not None:
            points = replace(points, where=points.where + part)
            object.__setattr__(self, "points_here", points)  # views are frozen
        return self

    def _absent(self) -> set[str]:
        """The attributes of this class that this part of this model does not have."""
        return set()

    def _without(self, name: str) -> str:
        kind = type(self).__name__
        rows = [point.name.removeprefix(self.at) for point in POINTS]
        mine = [row for row in rows if "." not in row]
        if name in mine or name.startswith("hook_"):
            known = name if name in mine else next(iter(mine))
            hint = "" if name in mine else suggest(name, mine)
            point = f"{self.at}{known}".replace("{i}", "0")
            return (
                f"{kind} has weights, and {name!r} would be an activation.{hint} Activations are "
                f"read and edited by name: model.run_with_cache(input, {point!r})."
            )
        if name in VIEW:
            return f"{kind} has no {name!r}.{instead(name, VIEW)}"
        public = [one for one in dir(type(self)) if not one.startswith("_")]
        public = [one for one in public if one not in ("at", "points_here", "with_points")]
        same = [one for one in public if one.lower() == name.lower()]
        hint = f" Did you mean {same[0]!r}?" if same else suggest(name, public)
        return (
            f"{kind} has no {name!r}.{hint} It has {', '.join(public)}; the native modules are in "
            "model.hf_model."
        )

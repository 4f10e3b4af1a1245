"""A point of one model to look at and to hook, and the handle of a hook on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lensbridge.errors import HookError
from lensbridge.hooks.callbacks import Callback, HookFunction, Kind, hook_function
from lensbridge.hooks.engine import Engine
from lensbridge.points.names import layer_of
from lensbridge.points.point_names import NamesFilter, names_points
from lensbridge.sites.modules import ModuleSite
from lensbridge.viz.picture import described

Direction = Literal["fwd", "bwd"]
"""fwd: activations. bwd: their gradients."""

HookPair: TypeAlias = tuple[NamesFilter, HookFunction]
"""Where to hook, and the function."""

KINDS: dict[str, Kind] = {"fwd": "edit", "bwd": "grad"}
"""What callbacks of each direction are."""


@dataclass(frozen=True, repr=False)
class HookPoint:
    """One point of one model.

    Args:
        name: canonical name.
        axes: one letter an axis (`lensbridge.names`).
        meaning: what the value is.
        where: the native module, and which side of it.
        formula: how the value comes about there.
        derived: whether it is computed from native tensors rather than found.
        on_request: whether it comes only when named.
        editable: whether a hook may change it.
    """

    name: str
    axes: str
    meaning: str
    where: str
    formula: str
    derived: bool
    on_request: bool
    editable: bool
    engine: Engine

    def layer(self) -> int | None:
        """The layer, or None outside the blocks."""
        return layer_of(self.name)

    @property
    def ctx(self) -> dict[str, Any]:
        """What hooks at this point keep, until `reset_hooks`."""
        return self.engine.contexts.setdefault(self.name, {})

    def add_hook(
        self, hook: HookFunction, dir: Direction = "fwd", is_permanent: bool = False
    ) -> HookHandle:
        """Listen here until the handle is removed."""
        return add_hooks(self.engine, [self.name], self.name, hook, dir, is_permanent)

    @property
    def _rows(self) -> dict[str, str]:
        kind = "derived" if self.derived else "native"
        return {
            "what": self.meaning,
            "where": self.where,
            "formula": self.formula,
            "kind": f"{kind}, {'editable' if self.editable else 'read only'}",
            **({"cached": "only when it is named"} if self.on_request else {}),
        }

    def __str__(self) -> str:
        rows = [f"  {name:<8} {text}" for name, text in self._rows.items()]
        return "\n".join([f"{self.name}  [{self.axes}]", *rows])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return described(f"{self.name}  [{self.axes}]", self._rows)


class HookHandle:
    """Takes off what `add_hook` put on."""

    def __init__(self, engine: Engine, callbacks: list[Callback]) -> None:
        self._engine = engine
        self.callbacks = callbacks

    def remove(self) -> None:
        """Stop listening. Removing twice does no harm."""
        self._engine.remove(self.callbacks)

    @property
    def names(self) -> list[str]:
        """The points that it listens to."""
        return [callback.name for callback in self.callbacks]


def callbacks_for(
    names: Sequence[str], asked: Any, fn: HookFunction, direction: Direction
) -> list[Callback]:
    """One callback for each point. A point that was named must fire; one that a filter took may.

    Raises:
        HookError: a direction that there is not.
    """
    if direction not in KINDS:
        raise HookError(f"dir is 'fwd' or 'bwd', not {direction!r}.")
    call, required = hook_function(fn), names_points(asked)
    return [Callback(name, KINDS[direction], call, str(asked), required) for name in names]


def add_hooks(
    engine: Engine,
    names: Sequence[str],
    asked: NamesFilter,
    fn: HookFunction,
    direction: Direction,
    permanent: bool,
) -> HookHandle:
    """Listen at points in every run until removed; those that were named must be reached."""
    callbacks = callbacks_for(names, asked, fn, direction)
    for callback in callbacks:
        callback.permanent = permanent
    engine.add(callbacks)
    return HookHandle(engine, callbacks)


def point_at_module(site: ModuleSite, engine: Engine) -> HookPoint:
    """A point at the input or the output of a module of the model."""
    return HookPoint(
        name=site.name,
        axes=site.axes,
        meaning=f"what the module {'is given' if site.parts.side == 'in' else 'gives'}",
        where=site.where,
        formula=site.formula,
        derived=False,
        on_request=False,
        editable=True,
        engine=engine,
    )

"""The points of one model as its user meets them: listing, explaining, hooking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

from lensbridge.errors import HookError
from lensbridge.hooks.callbacks import (
    Callback,
    HookFunction,
    Kind,
    hook_function,
    require_any_fired,
    require_fired,
)
from lensbridge.hooks.engine import Engine
from lensbridge.points.names import Name, layer_of, template
from lensbridge.points.point_names import NamesFilter, PointNames, names_points
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.sites.modules import ModuleSite
from lensbridge.sites.spliced import NO_SPLICES, Splices
from lensbridge.viz.picture import described

Direction = Literal["fwd", "bwd"]
"""fwd: activations. bwd: their gradients."""

HookPair: TypeAlias = tuple[NamesFilter, HookFunction]
"""Where to hook, and the function."""

_KINDS: dict[str, Kind] = {"fwd": "edit", "bwd": "grad"}


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
    if direction not in _KINDS:
        raise HookError(f"dir is 'fwd' or 'bwd', not {direction!r}.")
    call, required = hook_function(fn), names_points(asked)
    return [Callback(name, _KINDS[direction], call, str(asked), required) for name in names]


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


def _at_module(site: ModuleSite, engine: Engine) -> HookPoint:
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


class HookMethods:
    """Listing, explaining and hooking the points of a model."""

    engine: Engine
    follow: Callable[[], bool]
    _native_vocabulary: PointNames
    _visited_vocabulary: PointNames | None = None

    @property
    def vocabulary(self) -> PointNames:
        """The names that there are here, those of what is spliced in among them."""
        self.follow()
        native, index = self._native_vocabulary, self.engine.sites
        if index is native.index:
            return native
        found = self._visited_vocabulary
        if found is None or found.index is not index:
            found = self._visited_vocabulary = replace(native, index=index)
        return found

    @vocabulary.setter
    def vocabulary(self, native: PointNames) -> None:
        self._native_vocabulary = native

    @property
    def hook_names(self) -> list[str]:
        """Canonical names of all points, in data-flow order."""
        return list(self.vocabulary.names)

    def hook_points(self) -> list[HookPoint]:
        """Every point."""
        return list(self.hook_dict.values())

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """Every point by name."""
        if self.vocabulary is self._native_vocabulary:
            return self._native_points
        return {name: self._point(name) for name in self.vocabulary.names}

    @cached_property
    def _native_points(self) -> dict[str, HookPoint]:
        return {name: self._point(name) for name in self._native_vocabulary.names}

    def explain(self, name: Name) -> HookPoint:
        """What a point is here: module, formula, axes, whether it can be edited. Print it.

        Raises:
            UnknownPointError: no such name.
            AbsentPointError: this architecture lacks the point, with the reason.
        """
        return self._point(self.vocabulary.canonical(name))

    def _point(self, name: str) -> HookPoint:
        site = self.engine.sites[name]
        if isinstance(site, ModuleSite):
            return _at_module(site, self.engine)
        row = BY_TEMPLATE[template(name)]
        return HookPoint(
            name=name,
            axes=site.axes,
            meaning=row.meaning,
            where=site.where,
            formula=site.formula,
            derived=row.derived,
            on_request=row.on_request,
            editable=site.editable,
            engine=self.engine,
        )

    def add_hook(
        self,
        name: NamesFilter,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
    ) -> HookHandle:
        """Listen at one point, or at all that a filter takes, in every run from now on.

        Args:
            name: a name in any accepted spelling, a glob, a callable on names, or a list of these.
            hook: `fn(activation, hook)`, returning a new value or None.
            dir: "fwd" for activations, "bwd" for their gradients.
            is_permanent: whether `reset_hooks` leaves it on.

        Returns:
            A handle with `.remove()`.
        """
        return add_hooks(self.engine, self._named(name), name, hook, dir, is_permanent)

    def add_perma_hook(
        self, name: NamesFilter, hook: HookFunction, dir: Direction = "fwd"
    ) -> HookHandle:
        """`add_hook` that `reset_hooks` leaves on."""
        return self.add_hook(name, hook, dir, is_permanent=True)

    def remove_hook(self, hook: HookHandle | NamesFilter) -> None:
        """Take off the hooks of a handle, or all that were added at the points of a filter."""
        if isinstance(hook, HookHandle):
            hook.remove()
            return
        names = set(self._named(hook))
        self.engine.remove(
            [
                one
                for one in self.engine.permanent
                if one.name in names and one.kind in _KINDS.values()
            ]
        )

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
    ) -> None:
        """Take off what `add_hook` put on.

        Args:
            clear_contexts: also empty every `hook.ctx`.
            direction: which hooks.
            including_permanent: permanent ones too.
        """
        kinds = set(_KINDS.values()) if direction == "both" else {_KINDS[direction]}
        self.engine.remove(
            [
                one
                for one in self.engine.permanent
                if one.kind in kinds and (including_permanent or not one.permanent)
            ]
        )
        if clear_contexts:
            self.engine.contexts.clear()

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        """Hooks for every run inside, in this thread only; contexts nest.

        Args:
            fwd_hooks: `(name or filter, fn)` pairs on activations.
            bwd_hooks: the same on gradients.
            reset_hooks_end: take them off at the end; otherwise they stay until `reset_hooks`.
            clear_contexts: empty every `hook.ctx` at the end.

        Raises:
            HookNeverFiredError: at the end, if the model was run and a named point never passed.
        """
        callbacks = self._callbacks(fwd_hooks, bwd_hooks)
        if reset_hooks_end:
            with self.listening(callbacks):
                yield self
        else:
            self.engine.add(callbacks)
            yield self
        if clear_contexts:
            self.engine.contexts.clear()

    @contextmanager
    def listening(self, callbacks: list[Callback], splices: Splices = NO_SPLICES) -> Iterator[None]:
        """Callbacks and splices for every run inside; each must have been passed by one."""
        self.follow()
        with self.engine.attached(callbacks, splices=splices) as attachment:
            yield
        if attachment.runs:
            require_fired(callbacks)
        elif not splices:
            require_any_fired(callbacks)

    def _callbacks(
        self, fwd_hooks: Iterable[HookPair], bwd_hooks: Iterable[HookPair]
    ) -> list[Callback]:
        return [
            *self._callbacks_one_way("fwd", fwd_hooks),
            *self._callbacks_one_way("bwd", bwd_hooks),
        ]

    def _callbacks_one_way(
        self, direction: Direction, pairs: Iterable[HookPair]
    ) -> Iterator[Callback]:
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise HookError(
                    f"{direction}_hooks is a list of pairs (name, function), and {pair!r} in it is "
                    "none."
                )
            asked, fn = pair
            yield from callbacks_for(self._named(asked), asked, fn, direction)

    def _named(self, asked: NamesFilter) -> list[str]:
        return self.vocabulary.select(asked)

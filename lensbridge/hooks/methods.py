"""The points of one model as its user meets them: listing, explaining, hooking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from lensbridge.errors import HookError
from lensbridge.hooks.callbacks import (
    Callback,
    HookFunction,
    require_any_fired,
    require_fired,
)
from lensbridge.hooks.engine import Engine
from lensbridge.hooks.hook_point import (
    KINDS,
    Direction,
    HookHandle,
    HookPair,
    HookPoint,
    add_hooks,
    callbacks_for,
    point_at_module,
)
from lensbridge.points.names import Name, template
from lensbridge.points.point_names import NamesFilter, PointNames
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.sites.modules import ModuleSite
from lensbridge.sites.spliced import NO_SPLICES, Splices


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
            return point_at_module(site, self.engine)
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
                if one.name in names and one.kind in KINDS.values()
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
        kinds = set(KINDS.values()) if direction == "both" else {KINDS[direction]}
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

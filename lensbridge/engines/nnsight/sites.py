"""Which points a trace can have, and the sites of those, recorded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import nn

from lensbridge.cache.capture import Collector
from lensbridge.engines.nnsight.recorder import Recorder
from lensbridge.errors import UnsupportedError
from lensbridge.hooks.callbacks import Callback
from lensbridge.points.point_names import NamesFilter, PointNames, names_points
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.composed import BranchInputSite, OuterSite, RepeatedSite
from lensbridge.sites.derived import ClippedSite
from lensbridge.sites.experts import ExpertSite, RouterSite
from lensbridge.sites.heads import HeadInputSite, LatentSite
from lensbridge.sites.kernel.site import KernelSite
from lensbridge.sites.site import SharedInputSite, Site

Placed = Callable[[nn.Module], str]
"""A module of the twin -> the module of nnsight's tree, as text."""


def reason(site: Site) -> str | None:
    """Why a trace cannot have a point; None: it can."""
    if isinstance(site, RepeatedSite):
        return "several layers share its module, and a trace reads a module once in a pass"
    inner = innermost(site)
    if isinstance(inner, KernelSite):
        return "it is inside the attention function, where no module's input or output holds it"
    if isinstance(inner, RouterSite):
        return "it is inside the router, where no module's input or output holds it"
    if isinstance(inner, ExpertSite):
        return "which tokens an expert gets is known only on the server"
    if any(stage.around for stage in site.stages_now):
        return "it is inside a module, and no module's input or output holds it"
    return None


def edit_reason(site: Site, apart: bool) -> str | None:
    """Why an edit of a point that can be read cannot be in a trace; None: it can.

    Args:
        site: the site of the point.
        apart: whether the trace runs in another process than the model, and is given copies of what
            modules read.
    """
    inner = innermost(site)
    if apart and isinstance(inner, SharedInputSite):
        return (
            "its tensor goes on to a module and past it, and NDIF hands a trace a copy, which goes "
            "on to the module only, unless it trusts you (pass trusted=True)"
        )
    if isinstance(inner, LatentSite):
        return "whether the part that all heads share stays as it is shows only on the server"
    if isinstance(inner, ClippedSite):
        return "whether the edit stays within what the model clips to shows only on the server"
    return None


def innermost(site: Site) -> Site:
    """A site without those that wrap it."""
    while isinstance(site, OuterSite):
        site = site.inner
    return site


@dataclass(frozen=True)
class RecordedSite(OuterSite):
    """A site whose work is written down."""

    recorder: Recorder
    placed: Placed

    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        outputs = dict.fromkeys(one.module for one in stages if one.phase == "output")
        looks = [Stage(module, "input", 98, self._look) for module in outputs]
        return (*looks, *map(self._recorded, stages))

    def _look(self, call: Call, chain: Chain) -> None:
        self.recorder.look(self.placed(call.module), "input", call)

    def _recorded(self, stage: Stage) -> Stage:
        def act(call: Call, chain: Chain) -> None:
            edits = chain.edits and any(map(_edits, getattr(chain, "callbacks", ())))
            if edits:
                self._require_editable()
            module = self.placed(call.module)
            visit = self.recorder.visit(module, stage.phase, call, self.name, edits)
            with visit, self._calling():
                stage.act(call, chain)

        return stage._replace(act=act, look=None)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Inside, modules that a site calls beside the pass are called on the server."""
        inner: Any = innermost(self)
        called = [inner.norm] if isinstance(inner, BranchInputSite) else []
        called = [inner.norm, inner.projection] if isinstance(inner, HeadInputSite) else called
        modules: list[Any] = [one for one in called if one is not None]
        for one in modules:
            one.forward = partial(self.recorder.called, one, self.placed(one))
        try:
            yield
        finally:
            for one in modules:
                del one.forward

    def _require_editable(self) -> None:
        why = edit_reason(self.inner, self.recorder.draft.apart)
        if why:
            raise UnsupportedError(
                f"{self.name} can be read through nnsight but not edited: {why}. Edit another "
                "point, or run this with lensbridge.load(...)."
            )


def _edits(callback: Callback) -> bool:
    """Whether a callback may change a value; those of a cache join the graph, and do not."""
    return callback.kind != "read" and callback.fn.__module__ != Collector.__module__


@dataclass(frozen=True)
class RecordedSites(Mapping[str, Site]):
    """The sites of a model, recorded."""

    native: Mapping[str, Site]
    recorder: Recorder
    placed: Placed

    def __getitem__(self, name: str) -> Site:
        site = self.native[name]
        return RecordedSite(site.info, site, self.recorder, self.placed)

    def __contains__(self, name: object) -> bool:
        return name in self.native

    def __iter__(self) -> Iterator[str]:
        return iter(self.native)

    def __len__(self) -> int:
        return len(self.native)


@dataclass(frozen=True, repr=False)
class TracedNames(PointNames):
    """The names of a model's points, of which a trace can have some.

    Args:
        refused: name -> why a trace cannot have the point; None: it can.
    """

    refused: Callable[[str], str | None] = lambda name: None

    @classmethod
    def of(cls, names: PointNames, sites: Mapping[str, Site]) -> "TracedNames":
        """The names of a model, by its sites."""
        own = {one.name: getattr(names, one.name) for one in fields(names)}
        return cls(**own, refused=lambda name: reason(sites[name]))

    def select(self, names_filter: NamesFilter) -> list[str]:
        """The canonical names that a filter selects; globs select what a trace can have.

        Raises:
            UnsupportedError: a point was named that a trace cannot have.
        """
        found = super().select(names_filter)
        lacking = [name for name in found if self.refused(name)]
        if lacking and (names_points(names_filter) or len(lacking) == len(found)):
            raise UnsupportedError(
                f"{lacking[0]} cannot be reached through nnsight: {self.refused(lacking[0])}. "
                f"{len(self._reached)} of {len(self.names)} points can; lens.points lists them. "
                "lensbridge.load(...) has them all."
            )
        return [name for name in found if name not in set(lacking)]

    @property
    def _reached(self) -> list[str]:
        return [name for name in self.names if self.refused(name) is None]

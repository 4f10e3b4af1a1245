"""Callbacks that are on the modules of a model now, as one PyTorch hook for each side of each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from lensbridge.hooks.callbacks import (
    Callback,
    Contexts,
    HasNumber,
    Hook,
    RunState,
    require_fired,
)
from lensbridge.hooks.chains import EditChain, ReadChain
from lensbridge.hooks.meeting import Meeting
from lensbridge.hooks.native_hook import Step, after, before
from lensbridge.hooks.scope import Aside, acting, is_own_run, is_run_of
from lensbridge.hooks.standing import Replaced
from lensbridge.native.compiled import Compilable
from lensbridge.native.fsdp import casts_output
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.site import Site
from lensbridge.sites.spliced import Splices

NO_CALLBACKS = ReadChain([])
STAYING = " The hook stays on the model: take it off with reset_hooks(including_permanent=True)."


class Host(Protocol):
    """The points that callbacks are put on, and who listens to them: an `Engine`."""

    entries: tuple[nn.Module, ...]
    permanent: list[Callback]
    version: int
    contexts: Contexts
    replaced: tuple[Replaced, ...]
    own: tuple[Callback, ...]
    meeting: Meeting | None
    base: "Attachment | None"
    chunk: HasNumber | None
    aside: Aside
    compilable: Compilable

    def sites_with(self, scoped: Splices, alone: bool = False) -> Mapping[str, Site]:
        """The sites where a context has splices of its own."""

    def placed(self, name: str, stage: Stage) -> Stage:
        """A stage of a point, where it is now."""

    def follow(self) -> bool:
        """Take in modules that were replaced; gives whether there were any."""


@dataclass(eq=False)
class Attachment:
    """Callbacks and stages that are on the model now, and the PyTorch hooks that carry them.

    Args:
        engine: whose points they are on.
        scoped: callbacks of this context and of those around it; the engine's permanent ones
            come before them.
        extra: stages beside the points' own.
        muted: whether a point is outside what this run computes.
        always: whether it acts wherever no other attachment does.
        outer: the attachment around it.
        splices: what stands at points in this context, beside the engine's own splices.
        alone: whether it is inside a hook, where the engine's permanent callbacks do not act.
        for_run: whether it is there for one call of the model, and no other code runs meanwhile.
        is_on: whether its PyTorch hooks are on the model.
        runs: how many passes it has seen.
        version: the engine's when it was attached.
    """

    engine: Host
    scoped: list[Callback]
    extra: list[Stage] = field(default_factory=list)
    muted: Callable[[str], bool] = lambda name: False
    always: bool = False
    outer: "Attachment | None" = None
    splices: Splices = field(default_factory=dict)
    alone: bool = False
    for_run: bool = False
    is_on: bool = False
    runs: int = 0
    version: int = -1
    chains: dict[str, Chain] = field(default_factory=dict)
    state: RunState = field(default_factory=RunState)
    handles: list[Any] = field(default_factory=list)

    def attach(self) -> None:
        """Put one PyTorch hook on each side of each module that has steps."""
        self.version, self.is_on = self.engine.version, True
        if self.engine.meeting is not None:
            self.engine.meeting.to_hook(self.callbacks)
        self.chains.clear()
        self.handles += self.engine.compilable.eagerly(others=not self.for_run)
        steps = self._steps()
        around = {
            step.stage.module for group in steps.values() for step in group if step.stage.around
        }
        for module in around:
            steps.setdefault((module, "output"), [])
        for (module, phase), group in steps.items():
            group.sort(key=lambda step: step.stage.rank)
            self.handles.append(self._hooked(module, phase, group, module in around))

    def _hooked(self, module: nn.Module, phase: str, group: list[Step], closes: bool) -> Any:
        """A PyTorch hook on one side of a module; gives its handle."""
        if phase == "input":
            hook = before(group, self.is_active, self.state)
            return module.register_forward_pre_hook(hook, with_kwargs=True)
        # transformers' own recording hooks must see the edit; FSDP's casts the output later
        first = casts_output(module) or any(step.chain.edits for step in group)
        return module.register_forward_hook(
            after(group, self.is_active, self.state, closes=closes),
            prepend=first,
            with_kwargs=True,
            always_call=closes,
        )

    def detach(self) -> None:
        """Take the hooks off and leave what an interrupted run left open."""
        self.is_on = False
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.state.close_contexts(None, clean=False)

    def _steps(self) -> dict[tuple[nn.Module, str], list[Step]]:
        callbacks = self.callbacks
        steps = [Step(stage, NO_CALLBACKS) for stage in self.extra]
        sites = self.engine.sites_with(self.splices, self.alone)
        callbacks = [one for one in callbacks if sites.get(one.name)]  # a splice may have left
        follows = [one.kind != "read" or one.follows for one in callbacks]
        remembers = [sites[one.name].remembers for one in callbacks]
        if any((self.engine.replaced, *follows, *remembers)):
            for module in self.engine.entries:
                begin = Stage(module, "input", -99, self._begin)
                steps.append(Step(begin, NO_CALLBACKS))
                if self.always:
                    end = Stage(module, "output", 99, self._end)
                    steps.append(Step(end, NO_CALLBACKS))
        for name, listeners in self._by_name(callbacks).items():
            site = sites[name]
            chain = self.chains[name] = self._chain(site, listeners)
            steps += [Step(self.engine.placed(name, stage), chain) for stage in site.stages_now]
        found: dict[tuple[nn.Module, str], list[Step]] = {}
        for step in steps:
            found.setdefault((step.stage.module, step.stage.phase), []).append(step)
        return found

    @property
    def callbacks(self) -> list[Callback]:
        """Everything that listens in it, in order."""
        own = () if self.always else self.engine.own
        return [*own, *(() if self.alone else self.engine.permanent), *self.scoped]

    def _begin(self, call: Call, chain: Chain) -> None:
        """A pass begins, with the modules and the permanent callbacks that there are now."""
        self.count_run()
        here = self
        # a lens looks before it runs, but a hook of an earlier pass may have added or removed some
        changed = not is_own_run(self.engine) and self.engine.follow()
        if changed or self.version != self.engine.version:
            here = self._attached_anew()
        here.state.begin_forward(call, chain)

    def _attached_anew(self) -> "Attachment":
        """The attachment that takes this one's place after modules or callbacks changed."""
        if self.always:  # the engine has made another
            return self.engine.base or self
        self.detach()
        self.attach()
        return self

    def _end(self, call: Call, chain: Chain) -> None:
        require_fired(self.engine.permanent, STAYING)

    def _by_name(self, callbacks: Iterable[Callback]) -> dict[str, list[Callback]]:
        found: dict[str, list[Callback]] = {}
        for callback in callbacks:
            if not self.muted(callback.name):
                found.setdefault(callback.name, []).append(callback)
        for listeners in found.values():
            listeners.sort(key=lambda one: one.last - one.first)
        return found

    def _chain(self, site: Site, listeners: list[Callback]) -> Chain:
        if all(callback.kind == "read" for callback in listeners):
            return ReadChain(listeners)
        hook = Hook(site.name, site.axes, self.engine.contexts, self.state, self.engine.chunk)
        return EditChain(hook, listeners, self.engine.aside)

    def count_run(self) -> None:
        """Note that the model was run inside this attachment and those around it."""
        here: Attachment | None = self
        while here is not None:
            here.runs += 1
            here = here.outer

    def is_active(self) -> bool:
        """Whether the code that is running now runs for this attachment."""
        current = acting(self.engine)
        if current is not None or not self.always:
            return current is self
        return self.is_on and is_run_of(self.engine)  # compiled code may keep it

"""Attach, run, detach: callbacks on the points of a native model, for one run at a time.

A run attaches PyTorch hooks to the modules that its points live on and takes them off in `finally`.
Every attachment belongs to the context (thread) that made it: its hooks do nothing while another
thread runs the same modules. Callbacks that were added for good fire in every context.

Order at one point: permanent callbacks, then those of enclosing `hooks()` contexts, then those of
the call; readers (caches) come last in the call. Order between points is the data flow's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lensbridge.hooks import Callback, Contexts, Hook, PointChain, RunState
from lensbridge.sites import Call, Site, Stage


class StopForward(Exception):  # noqa: N818  (not an error: it ends a forward pass that has its answer)
    """Carries a value out of a forward pass that need not go on."""

    def __init__(self, value: Tensor | None) -> None:
        self.value = value


_current: ContextVar[Mapping[int, "Attachment"]] = ContextVar("lensbridge", default={})  # noqa: B039


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
        runs: how many passes it has seen.
        version: the engine's when it was attached.
    """

    engine: "Engine"
    scoped: list[Callback]
    extra: list[Stage] = field(default_factory=list)
    muted: Callable[[str], bool] = lambda name: False
    always: bool = False
    outer: "Attachment | None" = None
    runs: int = 0
    version: int = -1
    state: RunState = field(default_factory=RunState)
    handles: list[Any] = field(default_factory=list)

    def attach(self) -> None:
        """Put one PyTorch hook on each side of each module that has stages."""
        self.version = self.engine.version
        callbacks = [*self.engine.permanent, *self.scoped]
        stages = [*self.extra, *self._point_stages(callbacks)]
        if any(callback.kind != "read" for callback in callbacks):
            stages.append(Stage(self.engine.root, "input", -99, self.state.begin_forward))
        inputs, outputs = _by_module(stages, "input"), _by_module(stages, "output")
        around = {stage.module for stage in stages if stage.around}
        for module, steps in inputs.items():
            hook = self._before(steps)
            self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        for module in outputs.keys() | around:
            hook = self._after(outputs.get(module, []))
            self.handles.append(
                module.register_forward_hook(hook, with_kwargs=True, always_call=module in around)
            )

    def detach(self) -> None:
        """Take the hooks off and leave what an interrupted run left open."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.state.close_contexts(None, clean=False)

    def _point_stages(self, callbacks: Iterable[Callback]) -> Iterator[Stage]:
        by_name: dict[str, list[Callback]] = {}
        for callback in callbacks:
            if not self.muted(callback.name):
                by_name.setdefault(callback.name, []).append(callback)
        for name, listeners in by_name.items():
            site = self.engine.sites[name]
            hook = Hook(name, site.axes, self.engine.contexts, self.state)
            yield from site.stages(PointChain(hook, listeners))

    def count_run(self) -> None:
        """Note that the model was run inside this attachment and those around it."""
        here: Attachment | None = self
        while here is not None:
            here.runs += 1
            here = here.outer

    def is_active(self) -> bool:
        """Whether the code that is running now runs for this attachment."""
        current = _current.get().get(id(self.engine))
        return current is self or (self.always and current is None)

    def _before(self, stages: list[Stage]) -> Callable[..., Any]:
        acts = [stage.act for stage in stages]
        opens = any(stage.around for stage in stages)
        state = self.state

        def before(module: nn.Module, args: Any, kwargs: Any = None) -> Any:
            if not self.is_active():
                return None
            call = Call(module, args, kwargs or {}, state.memory)
            for act in acts:
                act(call)
            if opens:
                state.open_contexts(module, call.around.values())
            return (call.args, call.kwargs) if call.replaced else None

        return before

    def _after(self, stages: list[Stage]) -> Callable[..., Any]:
        acts = [stage.act for stage in stages]
        state = self.state

        def after(module: nn.Module, args: Any, *rest: Any) -> Any:
            if not self.is_active():
                return None
            output = rest[-1]
            if state.open:
                state.close_contexts(module, clean=output is not None)
            if output is None:  # called only to clean up after an error
                return None
            call = Call(module, args, rest[0] if len(rest) == 2 else {}, state.memory, output)
            for act in acts:
                act(call)
            return call.output if call.replaced else None

        return after


def _by_module(stages: Iterable[Stage], phase: str) -> dict[nn.Module, list[Stage]]:
    found: dict[nn.Module, list[Stage]] = {}
    for stage in stages:
        if stage.phase == phase:
            found.setdefault(stage.module, []).append(stage)
    for steps in found.values():
        steps.sort(key=lambda stage: stage.rank)
    return found


@dataclass(eq=False)
class Engine:
    """The points of one model and who listens to them.

    Args:
        root: the model that is called.
        sites: where each canonical name lives.
        permanent: callbacks that act in every context.
        version: grows when `permanent` changes.
        contexts: the `hook.ctx` of each point.
    """

    root: nn.Module
    sites: Mapping[str, Site]
    permanent: list[Callback] = field(default_factory=list)
    version: int = 0
    contexts: Contexts = field(default_factory=dict)
    _base: Attachment | None = None

    @property
    def current(self) -> Attachment | None:
        """The attachment of the context that is running."""
        return _current.get().get(id(self))

    @property
    def is_idle(self) -> bool:
        """Whether nobody listens here."""
        return not self.permanent and self.current is None

    def in_force(self) -> Attachment | None:
        """The attachment that a plain call would run under, if it is up to date."""
        here = self.current or self._base
        return here if here is not None and here.version == self.version else None

    @contextmanager
    def attached(
        self,
        callbacks: list[Callback],
        extra: Iterable[Stage] = (),
        muted: Callable[[str], bool] = lambda name: False,
    ) -> Iterator[Attachment]:
        """Attach callbacks, with those that are already in force here, for the time inside."""
        outer = self.current
        inherited = [] if outer is None else outer.scoped
        scoped = [*inherited, *callbacks]
        attachment = Attachment(self, scoped, list(extra), muted, outer=outer)
        with ExitStack() as stack:
            stack.callback(attachment.detach)
            for context in self._around_run([*self.permanent, *scoped]):
                stack.enter_context(context)
            attachment.attach()
            token = _current.set({**_current.get(), id(self): attachment})
            stack.callback(_current.reset, token)
            yield attachment

    def _around_run(self, callbacks: list[Callback]) -> Iterator[AbstractContextManager[Any]]:
        for name in dict.fromkeys(callback.name for callback in callbacks):
            context = self.sites[name].around_run(self.root)
            if context is not None:
                yield context
                return

    def add(self, callbacks: Iterable[Callback]) -> None:
        """Listen in every context until `remove`."""
        self.permanent.extend(callbacks)
        self.version += 1
        self._reattach_base()

    def remove(self, callbacks: Iterable[Callback]) -> None:
        """Stop listening."""
        gone = set(callbacks)
        if not gone:
            return
        self.permanent[:] = [callback for callback in self.permanent if callback not in gone]
        self.version += 1
        self._reattach_base()

    def _reattach_base(self) -> None:
        if self._base is not None:
            self._base.detach()
        self._base = None
        if self.permanent:
            self._base = Attachment(self, [], always=True)
            self._base.attach()

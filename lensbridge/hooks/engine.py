"""Attach, run, detach: callbacks on the points of a native model, for one run at a time.

A run attaches PyTorch hooks to the modules that its points live on and takes them off in `finally`.
Every attachment belongs to the context (thread) that made it: its hooks do nothing while another
thread runs the same modules. Callbacks that were added for good fire in every context.

Order at one point: permanent callbacks, then those of enclosing `hooks()` contexts, then those of
the call; readers (caches) come last in the call. Order between points is the data flow's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lensbridge.errors import HookError
from lensbridge.hooks.callbacks import (
    Callback,
    Contexts,
    EditChain,
    HasNumber,
    Hook,
    ReadChain,
    RunState,
    require_fired,
)
from lensbridge.hooks.forked import bare_when_forked
from lensbridge.hooks.meeting import Meeting
from lensbridge.hooks.native_hook import Step, after, before
from lensbridge.hooks.scope import NOBODY, Aside, acting, entered, is_own_run, is_run_of, run_of
from lensbridge.hooks.standing import Replaced, standing_in
from lensbridge.native.compiled import Compilable
from lensbridge.native.fsdp import casts_output
from lensbridge.native.pieces import Sharding
from lensbridge.sites.site import Call, Chain, Site, Stage
from lensbridge.sites.spliced import NO_SPLICES, SitesWithSplices, Splices


class StopForward(Exception):  # noqa: N818  (not an error: it ends a forward pass that has its answer)
    """Carries a value out of a forward pass that need not go on."""

    def __init__(self, value: Tensor | None) -> None:
        self.value = value


NO_CALLBACKS = ReadChain([])
STAYING = " The hook stays on the model: take it off with reset_hooks(including_permanent=True)."


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

    engine: "Engine"
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
            if phase == "input":
                hook = before(group, self.is_active, self.state)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                closes = module in around
                hook = after(group, self.is_active, self.state, closes=closes)
                # transformers' own recording hooks must see the edit; FSDP's casts the output later
                first = casts_output(module) or any(step.chain.edits for step in group)
                handle = module.register_forward_hook(
                    hook,
                    prepend=first,
                    with_kwargs=True,
                    always_call=closes,
                )
            self.handles.append(handle)

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


@dataclass(eq=False)
class Engine:
    """The points of one model and who listens to them.

    Args:
        root: the model that is called.
        native_sites: where each canonical name lives.
        entries: modules by one of which every pass comes in: a PEFT wrapper goes past the call of
            its model, and generates past its own.
        permanent: callbacks that act in every context.
        version: grows when `permanent` changes.
        contexts: the `hook.ctx` of each point.
        splices: what stands at points in every context.
        replaced: modules with something else in their place in the lens's own runs.
        own: callbacks that act in the lens's own runs only, before all others.
        follow: takes in modules that were replaced since they were last looked at; gives whether
            there were any.
        meeting: where the ranks meet that share the model; None: there is one rank.
        base: what carries the permanent callbacks.
        chunk: which microbatch of a pipeline is computed.
    """

    root: nn.Module
    native_sites: Mapping[str, Site]
    entries: tuple[nn.Module, ...]
    permanent: list[Callback] = field(default_factory=list)
    version: int = 0
    contexts: Contexts = field(default_factory=dict)
    splices: Splices = field(default_factory=dict)
    replaced: tuple[Replaced, ...] = ()
    own: tuple[Callback, ...] = ()
    follow: Callable[[], bool] = lambda: False
    meeting: Meeting | None = None
    base: Attachment | None = None
    chunk: HasNumber | None = None
    _with_splices: SitesWithSplices | None = None

    def __post_init__(self) -> None:
        self.aside = Aside(self)
        self.compilable = Compilable.of(self.root)
        bare_when_forked(self)

    @property
    def sites(self) -> Mapping[str, Site]:
        """Where each name lives that there is in this context, splices' names among them."""
        here = self.current
        return self.sites_with(NO_SPLICES if here is None else here.splices)

    def sites_with(self, scoped: Splices, alone: bool = False) -> Mapping[str, Site]:
        """The sites where a context has splices of its own beside the engine's."""
        splices = {**(NO_SPLICES if alone else self.splices), **scoped}
        if not splices:
            return self.native_sites
        found = self._with_splices
        if found is None or found.splices != splices:
            found = self._with_splices = SitesWithSplices(self.native_sites, splices)
        return found

    def chain(self, name: str) -> Chain:
        """Who listens at a splice's point in the run that is going on."""
        here = self.current or self.base
        return NO_CALLBACKS if here is None else here.chains.get(name, NO_CALLBACKS)

    @property
    def current(self) -> Attachment | None:
        """The attachment of the context that is running."""
        here = acting(self)
        return None if here is NOBODY else here

    @property
    def listening(self) -> list[Callback]:
        """What acts in the runs of this context, in order."""
        here = self.current
        if here is not None:
            return here.callbacks
        return [*self.own, *([] if acting(self) is NOBODY else self.permanent)]

    @property
    def is_idle(self) -> bool:
        """Whether nobody listens here and nothing is replaced."""
        return self.current is None and not self.listening and not self.replaced

    @property
    def works_by_row(self) -> bool:
        """Whether all that listens here does the same to a row in whatever batch it is."""
        here = self.current
        splices = self.splices if here is None else {**self.splices, **here.splices}
        by_row = all(one.by_row for one in self.listening)
        return by_row and not splices and not self.replaced

    @contextmanager
    def run(self) -> Iterator[None]:
        """Inside, the lens runs its model itself, with what stands in the place of its modules."""
        meeting = self.meeting
        met = meeting and meeting.before_passes(self.root, lambda: self.listening)
        stand_ins = {one.module: one.stand_in for one in self.replaced}
        standing = standing_in(stand_ins) if stand_ins else nullcontext()
        with run_of(self), met or nullcontext(), standing:
            yield

    def replace(self, replaced: Iterable[Replaced], own: Iterable[Callback]) -> None:
        """Let these be all that stands in the place of modules and points in the lens's runs."""
        self.replaced, self.own = tuple(replaced), tuple(own)
        self.version += 1
        self._reattach_base()

    def placed(self, name: str, stage: Stage) -> Stage:
        """A stage of a point, where it is now that modules may be replaced."""
        for one in self.replaced:
            stage = one.placed(name, stage)
        return stage

    def in_force(self) -> Attachment | None:
        """The attachment that a plain call would run under, if it is up to date."""
        base = None if self.own else self.base
        here = base if acting(self) is None else self.current
        return here if here is not None and here.version == self.version else None

    @contextmanager
    def attached(
        self,
        callbacks: list[Callback],
        extra: Iterable[Stage] = (),
        muted: Callable[[str], bool] = lambda name: False,
        splices: Splices = NO_SPLICES,
        for_run: bool = False,
    ) -> Iterator[Attachment]:
        """Attach callbacks, with those that are already in force here, for the time inside.

        Raises:
            HookError: the code that runs inside is compiled, so that no hook would act.
        """
        self.compilable.refuse_compiled_runs()
        outer = self.current
        inherited, standing = ([], NO_SPLICES) if outer is None else (outer.scoped, outer.splices)
        scoped = [*inherited, *callbacks]
        attachment = Attachment(self, scoped, list(extra), muted, outer=outer, for_run=for_run)
        attachment.splices = {**standing, **splices}
        attachment.alone = acting(self) is NOBODY or (outer is not None and outer.alone)
        with ExitStack() as stack:
            stack.callback(attachment.detach)
            stack.callback(self.aside.forget)
            for context in self._around_run(attachment):
                stack.enter_context(context)
            attachment.attach()
            stack.enter_context(entered(self, attachment))
            yield attachment

    def check(
        self,
        prepared: Any,
        callbacks: Iterable[Callback] = (),
        new: int = 0,
        muted: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Let everything that listens here refuse an input before it is run.

        Args:
            prepared: the input.
            callbacks: what listens in this run beside it.
            new: how many columns a generation adds.
            muted: whether a point is outside what this run computes.
        """
        for one in [*self.listening, *callbacks]:
            if one.check is not None and not muted(one.name):
                one.check(prepared, new)

    def _around_run(self, attachment: Attachment) -> Iterator[AbstractContextManager[Any]]:
        sites = self.sites_with(attachment.splices, attachment.alone)
        for name in dict.fromkeys(one.name for one in attachment.callbacks):
            site = sites.get(name)
            context = None if site is None else site.around_run(self.root)
            if context is not None:
                yield context
                return

    def add(self, callbacks: Iterable[Callback], splices: Splices = NO_SPLICES) -> None:
        """Listen in every context until `remove`; splices stand in every context until then.

        Raises:
            HookError: the code that runs here is compiled, so that no hook would act.
        """
        self.compilable.refuse_compiled_runs()
        self.permanent.extend(callbacks)
        self.splices = {**self.splices, **splices}
        self.version += 1
        self._reattach_base()

    def remove(self, callbacks: Iterable[Callback], hosts: Iterable[str] = ()) -> None:
        """Stop listening; the splices of these hosts leave."""
        gone = set(callbacks)
        if not gone:
            return
        left = set(hosts)
        self.splices = {host: sites for host, sites in self.splices.items() if host not in left}
        self.permanent[:] = [callback for callback in self.permanent if callback not in gone]
        self.version += 1
        self._reattach_base()

    def move_to(
        self,
        sites: Mapping[str, Site],
        entries: tuple[nn.Module, ...],
        sharding: Sharding | None = None,
    ) -> None:
        """Go on with the sites of a model whose modules were replaced.

        Raises:
            HookError: a permanent callback listens at a point that is gone.
        """
        lost = [
            one.name for one in self.permanent if one.kind != "splice" and not sites.get(one.name)
        ]
        if lost:
            raise HookError(
                f"The model was changed and has no {lost[0]} any more, where a hook listens. Take "
                "the hook off: reset_hooks(including_permanent=True)."
            )
        here = {id(module) for module in self.root.modules()}
        gone = [one.path for one in self.replaced if id(one.module) not in here]
        if gone:
            raise HookError(
                f"The model was changed at {gone[0]}, where something else stands in this lens's "
                "runs. Take that off first, then change the model."
            )
        self.native_sites, self.entries, self._with_splices = sites, entries, None
        self.compilable = Compilable.of(self.root)
        self.meeting = None if sharding is None else Meeting(sharding)
        self.version += 1
        self._reattach_base()

    def close(self) -> None:
        """Take everything off the model."""
        self.permanent.clear()
        self.splices = {}
        self._reattach_base()

    def forget(self) -> None:
        """Have no callbacks, where the hooks are off the model already."""
        self.permanent.clear()
        self.contexts.clear()
        self.aside.forget()
        self.splices, self.base, self.version = {}, None, self.version + 1

    def _reattach_base(self) -> None:
        if self.base is not None:
            self.base.detach()
        self.base = None
        if self.permanent:
            self.base = Attachment(self, [], always=True)
            self.base.attach()

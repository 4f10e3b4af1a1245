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
from lensbridge.hooks.attachment import NO_CALLBACKS, Attachment
from lensbridge.hooks.callbacks import Callback, Contexts, HasNumber
from lensbridge.hooks.forked import bare_when_forked
from lensbridge.hooks.meeting import Meeting
from lensbridge.hooks.scope import NOBODY, Aside, acting, entered, run_of
from lensbridge.hooks.standing import Replaced, standing_in
from lensbridge.native.compiled import Compilable
from lensbridge.native.pieces import Sharding
from lensbridge.sites.call import Chain, Stage
from lensbridge.sites.site import Site
from lensbridge.sites.spliced import NO_SPLICES, SitesWithSplices, Splices


class StopForward(Exception):  # noqa: N818  (not an error: it ends a forward pass that has its answer)
    """Carries a value out of a forward pass that need not go on."""

    def __init__(self, value: Tensor | None) -> None:
        self.value = value


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

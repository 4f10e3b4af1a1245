"""Attach, run, detach: callbacks on the points of a native model, for one run at a time.

A run attaches PyTorch hooks to the modules that its points live on and takes them off in `finally`.
Every attachment belongs to the context (thread) that made it: its hooks do nothing while another
thread runs the same modules. Callbacks that were added for good fire in every context.

Order at one point: permanent callbacks, then those of enclosing `hooks()` contexts, then those of
the call; readers (caches) come last in the call. Order between points is the data flow's.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import local
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.errors import EditError, HookError, HookNeverFiredError
from lensbridge.names import layer_of
from lensbridge.sites import Call, Site, Stage

Kind = Literal["read", "edit", "grad"]
HookFunction: TypeAlias = Callable[..., Tensor | None]


class StopForward(Exception):  # noqa: N818  (not an error: it ends a forward pass that has its answer)
    """Carries a value out of a forward pass that need not go on."""

    def __init__(self, value: Tensor | None) -> None:
        self.value = value


@dataclass(eq=False)
class Callback:
    """One function at one point.

    Args:
        name: canonical name of the point.
        kind: "read" sees the live value and must not write to it; "edit" gets a private clone and
            may return a new value; "grad" gets the gradient on the way back.
        fn: `fn(value)` for "read", `fn(value, hook)` for the others.
        asked: what the user wrote, for messages.
        required: whether it is an error if a run never passes the point.
        permanent: whether `reset_hooks` leaves it alone.
    """

    name: str
    kind: Kind
    fn: Callable[..., Any]
    asked: str = ""
    required: bool = True
    permanent: bool = False
    fired: int = 0


def hook_function(fn: HookFunction) -> HookFunction:
    """`fn` as something to be called with `(value, hook)`, by keyword where it has that name."""
    if not callable(fn):
        raise HookError(f"A hook is a function of (activation, hook); got {type(fn).__name__}.")
    try:
        parameters = inspect.signature(fn).parameters
    except ValueError:  # builtins without a signature
        return fn
    kinds = {p.kind for p in parameters.values()}
    if "hook" in parameters or inspect.Parameter.VAR_KEYWORD in kinds:
        return lambda value, hook: fn(value, hook=hook)
    return fn


class RunState(local):
    """What one run remembers between its hooks; one for each thread."""

    def __init__(self) -> None:
        self.memory: dict[str, Any] = {}
        self.open: list[tuple[nn.Module, AbstractContextManager[Any]]] = []
        self.step = -1
        self.root_kwargs: Mapping[str, Any] = {}
        self.past = 0

    def begin_forward(self, call: Call) -> None:
        """Note what the top-level forward is called with."""
        self.step += 1
        self.memory.clear()
        named = dict(call.kwargs)
        if call.args:
            named.setdefault("input_ids", call.args[0])
        self.root_kwargs = named
        past = named.get("past_key_values")
        self.past = 0 if past is None else int(past.get_seq_length())

    def positions(self) -> Tensor:
        """Shapes: `[batch, pos]`, each token's position in its row."""
        named = self.root_kwargs
        given = named.get("input_ids")
        given = named["inputs_embeds"] if given is None else given
        batch, count = given.shape[:2]
        if named.get("position_ids") is not None:
            return torch.as_tensor(named["position_ids"]).expand(batch, -1)
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -count:]
        return torch.arange(self.past, self.past + count, device=given.device).expand(batch, -1)

    def open_contexts(self, module: nn.Module, contexts: Iterable[Any]) -> None:
        """Enter what a module's stages asked for."""
        for context in contexts:
            context.__enter__()
            self.open.append((module, context))

    def close_contexts(self, module: nn.Module | None, clean: bool) -> None:
        """Leave what is open for a module (None: all of it), innermost first."""
        while self.open and (module is None or self.open[-1][0] is module):
            _, context = self.open.pop()
            context.__exit__(*((None, None, None) if clean else (HookError, None, None)))


class Hook:
    """What a hook function gets beside the activation.

    Attributes:
        name: canonical name of the point.
        axes: its axes, one letter each (`names.py`).
    """

    __slots__ = ("_engine", "_state", "axes", "name")

    def __init__(self, name: str, axes: str, engine: "Engine", state: RunState) -> None:
        self.name = name
        self.axes = axes
        self._engine = engine
        self._state = state

    @property
    def ctx(self) -> dict[str, Any]:
        """A dictionary that stays with the point until `reset_hooks`."""
        return self._engine.context(self.name)

    def layer(self) -> int:
        """The layer that the point is in.

        Raises:
            HookError: the point is outside the blocks.
        """
        layer = layer_of(self.name)
        if layer is None:
            raise HookError(f"{self.name} is not in a layer.")
        return layer

    @property
    def step(self) -> int:
        """How many forward passes came before this one: 0 for a plain run and for the prompt."""
        return max(self._state.step, 0)

    @property
    def phase(self) -> Literal["prefill", "decode"]:
        """Whether this pass reads a prompt or continues one from a key/value cache."""
        return "decode" if self._state.past else "prefill"

    @property
    def positions(self) -> Tensor:
        """Position of each token of this pass in its row, counting earlier passes.

        Shapes: `[batch, pos]`
        """
        return self._state.positions()

    def __repr__(self) -> str:
        return f"Hook({self.name!r}, axes={self.axes!r}, step={self.step})"


class PointChain:
    """The callbacks of one point in one attachment, run in order."""

    __slots__ = ("callbacks", "edits", "hook")

    def __init__(self, hook: Hook, callbacks: list[Callback]) -> None:
        self.hook = hook
        self.callbacks = callbacks
        self.edits = any(callback.kind != "read" for callback in callbacks)

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Show the value to every callback; the new value if any of them could change it."""
        if not self.edits:
            for callback in self.callbacks:
                callback.fired += 1
                callback.fn(value)
            return None
        current = value
        for callback in self.callbacks:
            callback.fired += 1
            if callback.kind == "read":
                # an edit is written into this very tensor later: a reader keeps a copy
                callback.fn(current.clone() if in_place and current is value else current)
            elif callback.kind == "edit":
                current = self._edited(callback, current)
            else:
                current = self._with_grad(callback, current)
        return current

    def _edited(self, callback: Callback, value: Tensor) -> Tensor:
        given = value.clone()
        returned = callback.fn(given, self.hook)
        return given if returned is None else fitting(returned, value, self.hook)

    def _with_grad(self, callback: Callback, value: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise HookError(
                f"{self.hook.name}: a backward hook needs gradients, and they are switched off "
                "(torch.no_grad or set_grad_enabled(False))."
            )
        given = value.clone() if value.requires_grad else value.detach().clone().requires_grad_()
        hook = self.hook

        def backward(grad: Tensor) -> Tensor:
            private = grad.clone()
            returned = callback.fn(private, hook)
            return private if returned is None else fitting(returned, grad, hook)

        given.register_hook(backward)
        return given


def fitting(returned: Any, value: Tensor, hook: Hook) -> Tensor:
    """What a hook returned, on the device of what it replaces.

    Raises:
        EditError: not a tensor, or of another shape or dtype.
    """
    if not isinstance(returned, Tensor):
        raise EditError(
            f"{hook.name}: the hook returned {type(returned).__name__}; return a tensor of shape "
            f"{tuple(value.shape)}, or None and edit in place."
        )
    if returned.shape != value.shape:
        raise EditError(
            f"{hook.name}: the hook returned shape {tuple(returned.shape)}; the point has "
            f"{tuple(value.shape)} (axes {hook.axes})."
        )
    if returned.dtype != value.dtype:
        raise EditError(
            f"{hook.name}: the hook returned {returned.dtype}; the point has {value.dtype}. "
            "Return value.to(activation.dtype)."
        )
    return returned.to(value.device)


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
            hook = Hook(name, site.axes, self.engine, self.state)
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
    """

    root: nn.Module
    sites: Mapping[str, Site]
    permanent: list[Callback] = field(default_factory=list)
    version: int = 0
    _contexts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _base: Attachment | None = None

    def context(self, name: str) -> dict[str, Any]:
        """The `hook.ctx` of a point."""
        return self._contexts.setdefault(name, {})

    def clear_contexts(self) -> None:
        """Empty every `hook.ctx`."""
        self._contexts.clear()

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


def require_fired(callbacks: Iterable[Callback], why: str = "") -> None:
    """Raise for hooks that a finished run never reached.

    Raises:
        HookNeverFiredError: with the names.
    """
    silent = [callback for callback in callbacks if callback.required and not callback.fired]
    if silent:
        names = ", ".join(dict.fromkeys(callback.name for callback in silent))
        raise HookNeverFiredError(f"The run never reached {names}.{why}")

"""What listens at a point: callbacks, and what their functions get."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import local
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn

from lensbridge.errors import HookError, HookNeverFiredError
from lensbridge.hooks.progress import Progress
from lensbridge.points.names import layer_of
from lensbridge.sites.call import Call, Chain

if TYPE_CHECKING:
    from lensbridge.inputs.prepare import Prepared

Kind = Literal["read", "edit", "grad", "splice"]
if TYPE_CHECKING:
    Phase: TypeAlias = Literal["prefill", "decode"]
else:
    Phase = str  # jedi, which completes names in notebooks, fails on a property of a Literal type
HookFunction: TypeAlias = Callable[..., Tensor | None]
"""`fn(activation, hook)`: edits the activation in place, or returns a new value, or None."""

Contexts: TypeAlias = dict[str, dict[str, Any]]
"""`hook.ctx` of each point, by name."""


@dataclass(eq=False)
class Callback:
    """One function at one point.

    Args:
        name: canonical name of the point.
        kind: "read" sees the live value and must not write to it; "edit" gets a private clone and
            may return a new value; "grad" gets the gradient on the way back; "splice" sees the
            live value, must not write to it and returns what goes on in its place.
        fn: `fn(value)` for "read", `fn(value, hook)` for the others.
        asked: what the user wrote, for messages.
        required: whether it is an error if a run never passes the point.
        permanent: whether `reset_hooks` leaves it alone.
        first: whether it comes before all others at its point, to see what arrives there.
        last: whether it comes after all others at its point, and sees the value that they leave.
        by_row: whether what it does to a row of a batch depends on that row alone.
        follows: whether a reader needs to know where in its sequence the run is.
        check: called with every input before it is run, to refuse what does not fit; with how many
            new columns a generation makes of it.
    """

    name: str
    kind: Kind
    fn: Callable[..., Any]
    asked: str = ""
    required: bool = True
    permanent: bool = False
    first: bool = False
    last: bool = False
    by_row: bool = False
    follows: bool = False
    check: "Callable[[Prepared, int], None] | None" = None
    fired: int = 0


def hook_function(fn: HookFunction) -> HookFunction:
    """`fn` as something to be called with `(value, hook)`, by keyword where it has that name.

    Raises:
        HookError: it cannot be called so.
    """
    if not callable(fn):
        raise HookError(f"A hook is a function of (activation, hook); got {type(fn).__name__}.")
    try:
        signature = inspect.signature(fn)
    except ValueError:  # builtins without a signature
        return fn
    kinds = {p.kind for p in signature.parameters.values()}
    by_keyword = "hook" in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds
    try:
        signature.bind(None, hook=None) if by_keyword else signature.bind(None, None)
    except TypeError as error:
        raise HookError(
            f"A hook is called with (activation, hook), and {getattr(fn, '__name__', fn)!r} takes "
            f"{signature}: {error}. Write def edit(activation, hook)."
        ) from error
    return (lambda value, hook: fn(value, hook=hook)) if by_keyword else fn


@dataclass(frozen=True)
class Sharing:
    """A hook function that gets the very tensor that the edit before it left, without a clone.

    PyTorch's own hooks get it so, and some programs count on it: they put a gradient into a tensor
    that they kept in one hook, and expect it in what another hook kept at the same point. Hooks on
    gradients are not called where a value depends on nothing that has a gradient.

    Args:
        fn: `fn(value, hook)`.
    """

    fn: HookFunction

    def __call__(self, value: Tensor, hook_: Any) -> Tensor | None:
        return self.fn(value, hook_)


class HasNumber(Protocol):
    """Which microbatch of a pipeline is computed now."""

    number: int | None


class RunState(local):
    """What one run remembers between its hooks; one for each thread."""

    def __init__(self) -> None:
        self.memory: dict[Any, Any] = {}
        self.open: list[tuple[nn.Module, AbstractContextManager[Any]]] = []
        self.progress = Progress()

    def begin_forward(self, call: Call, chain: Chain) -> None:
        """A stage at the root: note what the top-level forward is called with."""
        self.close_contexts(None, clean=False)  # of a run that was interrupted
        self.memory.clear()
        self.progress.begin(call.module, call.args, call.kwargs)

    def run(self, acts: Iterable[tuple[Callable[[Call, Chain], None], Chain]], call: Call) -> None:
        """Run the stages on one side of a module.

        What hooks compute is not the model's: taps that are open look away meanwhile.
        """
        taps: list[Any] = [context for _, context in self.open]
        for tap in taps:
            tap.looking = False
        try:
            for act, chain in acts:
                act(call, chain)
        finally:
            for tap in taps:
                tap.looking = True

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
        axes: its axes, one letter each (`points/table.py`).
    """

    __slots__ = ("_chunk", "_contexts", "_state", "axes", "name")

    def __init__(
        self,
        name: str,
        axes: str,
        contexts: Contexts,
        state: RunState,
        chunk: HasNumber | None = None,
    ) -> None:
        self.name = name
        self.axes = axes
        self._contexts = contexts
        self._state = state
        self._chunk = chunk

    @property
    def ctx(self) -> dict[str, Any]:
        """A dictionary that stays with the point until `reset_hooks`."""
        return self._contexts.setdefault(self.name, {})

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
        return max(self._state.progress.step, 0)

    @property
    def microbatch(self) -> int | None:
        """The number of the microbatch, in a stage of a pipeline; None elsewhere."""
        return None if self._chunk is None else self._chunk.number

    @property
    def phase(self) -> "Phase":
        """Whether this pass reads a prompt or continues one from a key/value cache."""
        return "decode" if self._state.progress.past else "prefill"

    @property
    def tokens(self) -> Tensor | None:
        """Ids of this pass, or None where the model was given something else.

        Shapes: `[batch, pos]`
        """
        given = self._state.progress.named.get("input_ids")
        return given if isinstance(given, Tensor) and not given.is_floating_point() else None

    @property
    def positions(self) -> Tensor:
        """Position of each token of this pass in its row, counting earlier passes.

        Shapes: `[batch, pos]`
        """
        return self._state.progress.positions(self._is_encoder)

    @property
    def finished(self) -> Tensor:
        """Which rows an EOS ended earlier; what comes in them now is filler.

        Rows of a beam search move, and those that ended are no longer run: none is finished there.

        Shapes: `[batch]`, bool
        """
        return self._state.progress.finished()

    @property
    def memory(self) -> dict[Any, Any]:
        """What tools keep for the length of one pass; empty when a pass begins."""
        return self._state.memory

    @property
    def progress(self) -> Progress:
        """Where the run is in its sequence."""
        return self._state.progress

    @property
    def _is_encoder(self) -> bool:
        return self.name.startswith("encoder.")

    def __repr__(self) -> str:
        return f"Hook({self.name!r}, axes={self.axes!r}, step={self.step})"


def require_fired(callbacks: Iterable[Callback], why: str = "") -> None:
    """Raise for hooks that a finished run never reached.

    Raises:
        HookNeverFiredError: with the names.
    """
    silent = [callback for callback in callbacks if callback.required and not callback.fired]
    if silent:
        raise HookNeverFiredError(f"The run never reached {_listed(silent)}.{why}")


def require_any_fired(callbacks: Sequence[Callback]) -> None:
    """Raise for the hooks of a context in which none of them acted.

    Raises:
        HookNeverFiredError: with the names, and what may be the matter.
    """
    if callbacks and not any(callback.fired for callback in callbacks):
        raise HookNeverFiredError(
            f"No hook of this context acted ({_listed(callbacks)}): the model was not run inside "
            "it, or in another thread or process, where these hooks do not act. Run it inside the "
            "context in the same thread; give other threads lensbridge.carry_hooks(function), "
            "which takes the hooks along; or use model.stream(...) for text that is generated "
            "piece by piece."
        )


def _listed(callbacks: Iterable[Callback], most: int = 4) -> str:
    names = list(dict.fromkeys(callback.name for callback in callbacks))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

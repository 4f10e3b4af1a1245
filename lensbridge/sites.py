"""Where a point lives in the native model: how it is read there, and how an edit is written back.

A `Site` says which module calls it takes part in, as `Stage`s. When one of its stages runs, it
hands the value to its `Chain` (the callbacks of that point, `run.py`) and writes back what the
chain returns. Sites know modules and tensors; they know neither architectures nor who is listening.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lensbridge.layouts import Layout

Phase = Literal["input", "output"]


class Chain(Protocol):
    """The callbacks of one point in one run."""

    @property
    def edits(self) -> bool:
        """Whether any of them may change the value."""
        ...

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Show the value to every callback; the new value if any of them may have changed it.

        Args:
            value: the activation, in canonical axes.
            in_place: the site writes edits into the very tensor that it read.
        """
        ...


class Call:
    """One call of a native module, as the stages on it see it."""

    __slots__ = (
        "_around",
        "_extras",
        "_notes",
        "args",
        "kwargs",
        "memory",
        "module",
        "output",
        "replaced",
    )

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        memory: dict[Any, Any],
        output: Any = None,
    ) -> None:
        self.module = module
        self.args = args
        self.kwargs = kwargs
        self.output = output
        self.memory = memory
        """Carried from stage to stage through the whole forward pass."""
        self.replaced = False
        self._notes: dict[str, Tensor] | None = None  # made when needed: there are many calls
        self._around: dict[str, AbstractContextManager[Any]] | None = None
        self._extras: dict[str, Any] | None = None

    @property
    def extras(self) -> dict[str, Any]:
        """What else the stages of this call share."""
        self._extras = {} if self._extras is None else self._extras
        return self._extras

    @property
    def notes(self) -> dict[str, Tensor]:
        """Carried between the stages of this call."""
        self._notes = {} if self._notes is None else self._notes
        return self._notes

    @property
    def around(self) -> dict[str, AbstractContextManager[Any]]:
        """Contexts to be open while the module runs."""
        self._around = {} if self._around is None else self._around
        return self._around

    def _keyword(self) -> str:
        """Which keyword holds the activation, where HF passes it by keyword."""
        if "hidden_states" in self.kwargs:
            return "hidden_states"
        return next(key for key, value in self.kwargs.items() if isinstance(value, Tensor))

    @property
    def input(self) -> Tensor:
        """The activation that the module is called with."""
        return self.args[0] if self.args else self.kwargs[self._keyword()]

    def replace_input(self, value: Tensor) -> None:
        """Give the module another activation."""
        value = _laid_out_like(self.input, value)
        if self.args:
            self.args = (value, *self.args[1:])
        else:
            self.kwargs = {**self.kwargs, self._keyword(): value}
        self.replaced = True

    @property
    def result(self) -> Tensor:
        """The activation that the module returns, alone or first in a tuple."""
        return self.output if isinstance(self.output, Tensor) else self.output[0]

    def replace_result(self, value: Tensor) -> None:
        """Return another activation in the same form."""
        value = _laid_out_like(self.result, value)
        if isinstance(self.output, Tensor):
            self.output = value
        else:
            self.output = type(self.output)((value, *self.output[1:]))
        self.replaced = True


def _laid_out_like(native: Tensor, value: Tensor) -> Tensor:
    """The value in one piece of memory where the native one is: models take views of it."""
    return value.contiguous() if native.is_contiguous() else value


class Stage(NamedTuple):
    """One step of a site: at the input or output of one module, in data-flow order by rank.

    Args:
        act: shows the value to the chain and writes back what comes out of it.
        look: how the value is had from the module's input or output, where that is all that
            reading it takes; a chain that only reads then needs no `act`.
        around: it puts contexts into `call.around`, to be open while the module runs.
    """

    module: nn.Module
    phase: Phase
    rank: int
    act: Callable[[Call, Chain], None]
    look: Callable[[Tensor], Tensor] | None = None
    around: bool = False


@dataclass(frozen=True)
class Site(ABC):
    """One point on the native model.

    Args:
        name: canonical name.
        axes: as in the table of points.
        where: the native module and which side of it, for people to read.
        formula: how the value comes about there, for people to read.
        shares: names of the points that are slices of the same tensor, this one included.
    """

    name: str
    axes: str
    where: str
    formula: str
    shares: frozenset[str]

    editable: ClassVar[bool] = True
    """Whether an edit here reaches everyone who reads the value; a site that cannot, refuses."""

    remembers: ClassVar[bool] = False
    """Whether reading it needs a fresh `Call.memory` for each pass."""

    @property
    def may_be_part(self) -> bool:
        """Whether the value can be a view of a larger tensor that it would keep alive."""
        return False

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """What to attach so that a chain sees this point."""
        return tuple(self._stages())

    @abstractmethod
    def _stages(self) -> list[Stage]:
        """The stages, worked out once for the model."""

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        """A context that a whole run needs so that this point can be seen."""
        return None


@dataclass(frozen=True)
class LayoutSite(Site):
    """One side of a module, seen through a layout."""

    module: nn.Module
    layout: Layout
    rank: int = 0
    overwritten: bool = False

    @property
    def may_be_part(self) -> bool:
        return not self.layout.whole

    def live(self, whole: Tensor) -> Tensor:
        """The tensor to read from: a copy where the model writes into its own afterwards."""
        return whole.clone() if self.overwritten else whole


@dataclass(frozen=True)
class InputSite(LayoutSite):
    """The input of a module, through a layout. An edit gives the module another input."""

    def _stages(self) -> list[Stage]:
        layout = self.layout

        def act(call: Call, chain: Chain) -> None:
            whole = call.input
            new = chain.run(layout.split(whole))
            if new is not None:
                call.replace_input(layout.merge(whole, new))

        return [Stage(self.module, "input", self.rank, act, layout.split)]


@dataclass(frozen=True)
class SharedInputSite(Site):
    """The input of a module that others read too (a skip connection reads the same tensor).

    An edit is written into that tensor before the module runs, so every reader has it.
    """

    module: nn.Module

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            shared = call.input
            new = chain.run(shared, in_place=True)
            if new is not None:
                shared.copy_(new)

        return [Stage(self.module, "input", 0, act, lambda shared: shared)]


@dataclass(frozen=True)
class BranchInputSite(Site):
    """The stream as a branch without a norm of its own reads it: the input of its first modules.

    An edit goes to each of them and leaves the skip connection alone. Where `norm` serves another
    branch too, the stream is what it reads, and an edit goes through it to this branch alone.
    """

    modules: tuple[nn.Module, ...]
    norm: nn.Module | None = None

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            new = chain.run(call.input)
            if new is not None:
                call.memory[self.name] = new
                call.replace_input(new)

        def act_on_norm(call: Call, chain: Chain) -> None:
            stream = call.input
            new = chain.run(stream)
            if new is not None and not (new is stream or torch.equal(new, stream)):
                assert self.norm is not None
                call.memory[self.name] = self.norm.forward(new)

        def follow(call: Call, chain: Chain) -> None:
            if self.name in call.memory:
                call.replace_input(call.memory[self.name])

        if self.norm is not None:
            entrances = [Stage(module, "input", 1, follow) for module in self.modules]
            return [Stage(self.norm, "input", 1, act_on_norm, lambda x: x), *entrances]
        first, *others = self.modules
        looking = Stage(first, "input", 1, act, lambda x: x)
        return [looking, *(Stage(other, "input", 1, follow) for other in others)]


@dataclass(frozen=True)
class RepeatedSite(Site):
    """A point of one layer of several that share their modules: it acts on one of the calls."""

    inner: Site
    nth: int

    remembers: ClassVar[bool] = True

    @property
    def may_be_part(self) -> bool:
        return self.inner.may_be_part

    def _stages(self) -> list[Stage]:
        return [self._counted(i, stage) for i, stage in enumerate(self.inner.stages)]

    def _counted(self, i: int, stage: Stage) -> Stage:
        key = (self.name, i)

        def act(call: Call, chain: Chain) -> None:
            seen = call.memory.get(key, 0)
            call.memory[key] = seen + 1
            if seen == self.nth:
                stage.act(call, chain)

        return Stage(stage.module, stage.phase, stage.rank, act, None, stage.around)

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return self.inner.around_run(root)


@dataclass(frozen=True)
class OutputSite(LayoutSite):
    """The output of a module, through a layout."""

    rank: int = 2

    def _stages(self) -> list[Stage]:
        layout = self.layout

        def act(call: Call, chain: Chain) -> None:
            whole = self.live(call.result)
            new = chain.run(layout.split(whole))
            if new is not None:
                call.replace_result(self.live(layout.merge(whole, new)))

        def look(result: Tensor) -> Tensor:
            return layout.split(self.live(result))

        how = look if self.overwritten else layout.split
        return [Stage(self.module, "output", self.rank, act, how)]


class RowsChain:
    """A chain behind a value whose batch and positions are one axis natively."""

    def __init__(self, chain: Chain, rows: tuple[int, int], to_axes: int) -> None:
        self.chain = chain
        self.rows = rows
        self.to_axes = to_axes

    @property
    def edits(self) -> bool:
        """Whether any callback may change the value."""
        return self.chain.edits

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Show the value with its batch and position axes."""
        if value.ndim == self.to_axes:
            return self.chain.run(value, in_place=in_place)
        tail = (-1,) if self.to_axes == 3 else value.shape[1:]
        new = self.chain.run(value.reshape(*self.rows, *tail), in_place=in_place)
        return None if new is None else new.reshape(value.shape)


@dataclass(frozen=True)
class FlatSite(Site):
    """A point behind a module that flattens batch and positions: `block`'s input tells them."""

    inner: Site
    block: nn.Module

    remembers: ClassVar[bool] = True

    @property
    def may_be_part(self) -> bool:
        return self.inner.may_be_part

    def _stages(self) -> list[Stage]:
        def note_rows(call: Call, chain: Chain) -> None:
            call.memory[self.name, "rows"] = call.input.shape[:2]

        noted = Stage(self.block, "input", -20, note_rows)
        return [noted, *(self._unflattened(stage) for stage in self.inner.stages)]

    def _unflattened(self, stage: Stage) -> Stage:
        to_axes = len(self.axes.split())

        def act(call: Call, chain: Chain) -> None:
            rows = call.memory[self.name, "rows"]
            stage.act(call, RowsChain(chain, rows, to_axes))

        return Stage(stage.module, stage.phase, stage.rank, act, None, stage.around)

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return self.inner.around_run(root)


@dataclass(frozen=True)
class PositionSite(Site):
    """Learned positions: one row for the whole batch natively, one for each example here."""

    module: nn.Module
    tokens: nn.Module | None

    def _stages(self) -> list[Stage]:
        def count(call: Call, chain: Chain) -> None:
            call.memory["batch"] = call.result.shape[0]

        def act(call: Call, chain: Chain) -> None:
            rows = call.result
            rows = rows if rows.ndim == 3 else rows.unsqueeze(0)
            batch = call.memory.get("batch", rows.shape[0])
            new = chain.run(rows.expand(batch, -1, -1))
            if new is not None:
                call.replace_result(new)

        if self.tokens is None:
            return [Stage(self.module, "output", 2, act)]
        return [Stage(self.tokens, "output", 0, count), Stage(self.module, "output", 2, act)]


@dataclass(frozen=True)
class LogitsSite(Site):
    """The logits that the model returns, where they are not the head's output as it is.

    Args:
        entries: the modules that may return them; one of them does.
    """

    entries: tuple[nn.Module, ...]

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            if call.memory.setdefault(self.name, call.module) is not call.module:
                return
            output = call.output
            new = chain.run(output.logits)
            if new is not None:
                output.logits = new

        return [Stage(entry, "output", 3, act) for entry in self.entries]

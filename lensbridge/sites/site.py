"""Where a point is in the native model: how it is read there, and how an edit is written back.

A `Site` says which module calls it takes part in, as `Stage`s. When a stage runs, it hands the
value to its `Chain` (the callbacks of that point, `hooks/callbacks.py`) and writes back what the
chain returns. Sites know modules and tensors, and neither architectures nor callbacks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from lensbridge.tensors.layouts import Layout

Phase = Literal["input", "output"]


class Chain(Protocol):
    """The callbacks of one point in one run."""

    @property
    def edits(self) -> bool:
        """Whether any of them may change the value."""

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Call every callback with the value; the new value if any of them may have changed it.

        Args:
            value: the activation, in canonical axes.
            in_place: the site writes edits into the tensor that it read.
        """


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
        """What stages hand on to later ones, through the whole forward pass."""
        self.replaced = False
        self._notes: dict[str, Tensor] | None = None  # made when needed: there are many calls
        self._around: dict[str, AbstractContextManager[Any]] | None = None
        self._extras: dict[str, Any] | None = None

    @property
    def extras(self) -> dict[str, Any]:
        """Other values that the stages of this call share."""
        self._extras = {} if self._extras is None else self._extras
        return self._extras

    @property
    def notes(self) -> dict[str, Tensor]:
        """Tensors that the stages of this call hand on."""
        self._notes = {} if self._notes is None else self._notes
        return self._notes

    @property
    def around(self) -> dict[str, AbstractContextManager[Any]]:
        """Contexts that are open while the module runs."""
        self._around = {} if self._around is None else self._around
        return self._around

    def _keyword(self) -> str:
        """The keyword that holds the activation, where HuggingFace passes it by keyword."""
        if "hidden_states" in self.kwargs:
            return "hidden_states"
        return next(key for key, value in self.kwargs.items() if isinstance(value, Tensor))

    @property
    def input(self) -> Tensor:
        """The activation that the module is called with."""
        return self.args[0] if self.args else self.kwargs[self._keyword()]

    def replace_input(self, value: Tensor) -> None:
        """Call the module with another activation."""
        value = _laid_out_like(self.input, value)
        if self.args:
            self.args = (value, *self.args[1:])
        else:
            self.kwargs = {**self.kwargs, self._keyword(): value}
        self.replaced = True

    @property
    def result(self) -> Tensor:
        """The activation that the module returns, by itself or first in a tuple."""
        return self.output if isinstance(self.output, Tensor) else self.output[0]

    def replace_result(self, value: Tensor) -> None:
        """Return another activation in the same form."""
        value = _laid_out_like(self.result, value)
        if isinstance(self.output, Tensor):
            self.output = value
        else:
            values, kind = (value, *self.output[1:]), type(self.output)
            self.output = kind(*values) if hasattr(self.output, "_fields") else kind(values)
        self.replaced = True


def _laid_out_like(native: Tensor, value: Tensor) -> Tensor:
    """The value, contiguous where the native one is, because models take views of it."""
    return value.contiguous() if native.is_contiguous() else value


class Stage(NamedTuple):
    """One step of a site, at the input or output of one module.

    Args:
        rank: the order of stages at one place, which is that of the data flow.
        act: runs the chain on the value and writes the result back.
        look: the value, made from the module's input or output. Set where reading needs nothing
            else, so that a chain that only reads can do without `act`.
        around: whether `act` puts contexts into `call.around`, open while the module runs.
    """

    module: nn.Module
    phase: Phase
    rank: int
    act: Callable[[Call, Chain], None]
    look: Callable[[Tensor], Tensor] | None = None
    around: bool = False


@dataclass(frozen=True)
class PointInfo:
    """What a point of one model is.

    Args:
        name: canonical name.
        axes: the axes of its values, as in the table of points.
        where: the native module and which side of it, as text.
        formula: how the value is made from that, as text.
        shares: the points that are slices of the same tensor, this one included.
    """

    name: str
    axes: str
    where: str
    formula: str
    shares: frozenset[str]


@dataclass(frozen=True)
class Site(ABC):
    """One point on the native model."""

    info: PointInfo

    editable: ClassVar[bool] = True
    """Whether an edit here reaches everything that reads the value. If not, edits are refused."""

    remembers: ClassVar[bool] = False
    """Whether reading it needs a fresh `Call.memory` for each pass."""

    @cached_property
    def name(self) -> str:
        """The canonical name."""
        return self.info.name

    @cached_property
    def axes(self) -> str:
        """The axes of its values."""
        return self.info.axes

    @property
    def where(self) -> str:
        """The native module and which side of it."""
        return self.info.where

    @property
    def formula(self) -> str:
        """How the value comes about there."""
        return self.info.formula

    @property
    def shares(self) -> frozenset[str]:
        """The points that are slices of the same tensor."""
        return self.info.shares

    def with_axes(self, axes: str) -> "Site":
        """The same site, with the axes that its values have in this model."""
        return replace(self, info=replace(self.info, axes=axes))

    @property
    def may_be_part(self) -> bool:
        """Whether the value can be a view of a larger tensor, which it would keep in memory."""
        return False

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """What has to be attached to run a chain at this point."""
        return tuple(self._stages())

    @property
    def stages_now(self) -> tuple[Stage, ...]:
        """The stages in the mode, training or not, in which the model is now."""
        return self.stages

    @abstractmethod
    def _stages(self) -> list[Stage]:
        """The stages; called once for each model."""

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        """A context that a whole run needs so that this point can be read."""
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
        """The tensor to read: a copy where the model overwrites its own afterwards."""
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
    """The input of a module that others read too, such as a skip connection.

    An edit is written into that tensor before the module runs, so all of them read it.
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

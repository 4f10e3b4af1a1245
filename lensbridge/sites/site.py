"""Where a point is in the native model: how it is read there, and how an edit is written back.

A `Site` says in which calls of modules it takes part, as `Stage`s (`call.py`). When a stage runs,
it hands the value to its `Chain` (the callbacks of that point, `hooks/callbacks.py`) and writes
back what the chain returns. Sites know modules and tensors, and neither architectures nor
callbacks.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.tensors.layouts import Layout


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

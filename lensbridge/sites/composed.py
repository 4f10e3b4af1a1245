"""Sites that are on several modules, or that wrap another site.

They are needed for a branch without a norm of its own, layers that share their modules, values with
batch and positions in one axis, learned positions, and logits that are not the head's output.
"""

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lensbridge.native.calling import logits_in, with_logits
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.derived import change, substitute
from lensbridge.sites.site import Site


@dataclass(frozen=True)
class BranchInputSite(Site):
    """The stream as a branch without a norm of its own reads it: the input of its first modules.

    An edit goes to each of them, and the skip connection keeps the unedited value. Where another
    branch reads `norm` too, the value is the norm's input, and an edit goes through the norm to
    this branch alone.
    """

    modules: tuple[nn.Module, ...]
    norm: nn.Module | None = None

    def _stages(self) -> list[Stage]:
        return self._at_modules() if self.norm is None else self._at_norm(self.norm)

    def _at_modules(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            new = chain.run(call.input)
            if new is not None:
                call.memory[self.name] = new
                call.replace_input(new)

        def follow(call: Call, chain: Chain) -> None:
            if self.name in call.memory:
                call.replace_input(call.memory[self.name])

        first, *others = self.modules
        looking = Stage(first, "input", 1, act, lambda x: x)
        return [looking, *(Stage(other, "input", 1, follow) for other in others)]

    def _at_norm(self, norm: nn.Module) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            stream = call.input
            new = chain.run(stream)
            how = change(stream, new)
            if how != "none":
                call.memory[self.name] = (norm.forward(new), how)

        def follow(call: Call, chain: Chain) -> None:
            if self.name in call.memory:
                normed, how = call.memory[self.name]
                call.replace_input(substitute(call.input, normed.view_as(call.input), how))

        entrances = [Stage(module, "input", 1, follow) for module in self.modules]
        return [Stage(norm, "input", 1, act, lambda x: x), *entrances]


@dataclass(frozen=True)
class OuterSite(Site):
    """A point that is another site's, with its stages made into others."""

    inner: Site

    remembers: ClassVar[bool] = True

    @property
    def may_be_part(self) -> bool:
        return self.inner.may_be_part

    @property
    def stages_now(self) -> tuple[Stage, ...]:
        inner = self.inner.stages_now
        return self.stages if inner is self.inner.stages else self._of(inner)

    def _stages(self) -> list[Stage]:
        return list(self._of(self.inner.stages))

    @abstractmethod
    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """These stages of the inner site as stages of this one."""


@dataclass(frozen=True)
class RepeatedSite(OuterSite):
    """A point of one of several layers that share their modules: it acts in one of the calls."""

    nth: int

    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(self._counted(i, stage) for i, stage in enumerate(stages))

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


class RowsChain:
    """A chain for a value that natively has batch and positions in one axis."""

    def __init__(self, chain: Chain, rows: tuple[int, int], to_axes: int) -> None:
        self.chain = chain
        self.rows = rows
        self.to_axes = to_axes

    @property
    def edits(self) -> bool:
        """Whether any callback may change the value."""
        return self.chain.edits

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Run the chain on the value with its batch and position axes."""
        if value.ndim == self.to_axes:
            return self.chain.run(value, in_place=in_place)
        tail = (-1,) if self.to_axes == 3 else value.shape[1:]
        new = self.chain.run(value.reshape(*self.rows, *tail), in_place=in_place)
        return None if new is None else new.reshape(value.shape)


@dataclass(frozen=True)
class FlatSite(OuterSite):
    """A point inside a module that flattens batch and positions; `block`'s input has both sizes."""

    block: nn.Module

    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        def note_rows(call: Call, chain: Chain) -> None:
            call.memory[self.name, "rows"] = call.input.shape[:2]

        noted = Stage(self.block, "input", -20, note_rows)
        return (noted, *(self._unflattened(stage) for stage in stages))

    def _unflattened(self, stage: Stage) -> Stage:
        to_axes = len(self.axes.split())

        def act(call: Call, chain: Chain) -> None:
            rows = call.memory[self.name, "rows"]
            stage.act(call, RowsChain(chain, rows, to_axes))

        return Stage(stage.module, stage.phase, stage.rank, act, None, stage.around)

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return self.inner.around_run(root)


class GatheredChain:
    """A chain for a value that natively has several rows for each example."""

    def __init__(self, chain: Chain, batch: int) -> None:
        self.chain = chain
        self.batch = batch

    @property
    def edits(self) -> bool:
        """Whether any callback may change the value."""
        return self.chain.edits

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Run the chain on the value with one row for each example."""
        whole = value.reshape(self.batch, -1, *value.shape[2:])
        new = self.chain.run(whole, in_place=in_place)
        return None if new is None else new.reshape(value.shape)


@dataclass(frozen=True)
class GatheredSite(OuterSite):
    """Keys or values of cross-attention, of which an example may natively have several rows.

    They are made of what an encoder gives, such as the tiles of an image, and put in one row only
    then. The input of `block` has one row for each example.
    """

    block: nn.Module

    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        def note_batch(call: Call, chain: Chain) -> None:
            call.memory[self.name, "batch"] = call.input.shape[0]

        noted = Stage(self.block, "input", -20, note_batch)
        return (noted, *(self._gathered(stage) for stage in stages))

    def _gathered(self, stage: Stage) -> Stage:
        def act(call: Call, chain: Chain) -> None:
            stage.act(call, GatheredChain(chain, call.memory[self.name, "batch"]))

        return Stage(stage.module, stage.phase, stage.rank, act, None, stage.around)

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return self.inner.around_run(root)


@dataclass(frozen=True)
class PositionSite(Site):
    """Learned positions: natively one row for the whole batch, here one for each example."""

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
    """The logits that the model returns, where these are not the head's output itself.

    Args:
        entries: the modules of which one returns them.
        width: how many logits each position has.
    """

    entries: tuple[nn.Module, ...]
    width: int | None

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            if call.memory.setdefault(self.name, call.module) is not call.module:
                return
            new = chain.run(logits_in(call.output, self.width))
            if new is not None:
                call.output = with_logits(call.output, new, self.width)
                call.replaced = True

        return [Stage(entry, "output", 3, act) for entry in self.entries]

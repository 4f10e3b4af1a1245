"""Where a point lives in the native model: how it is read there, and how an edit is written back.

A `Site` says which module calls it takes part in, as `Stage`s. When one of its stages runs, it
hands the value to its `Chain` (the callbacks of that point, `run.py`) and writes back what the
chain returns. Sites know modules and tensors; they know neither architectures nor who is listening.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import torch
from einops import einsum
from torch import Tensor, nn

from lensbridge.layouts import Layout
from lensbridge.norms import Norm
from lensbridge.weights import Linear

Phase = Literal["input", "output"]


class Chain(Protocol):
    """The callbacks of one point in one run."""

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Show the value to every callback; the new value if any of them may have changed it.

        Args:
            value: the activation, in canonical axes.
            in_place: the site writes edits into the very tensor that it read.
        """
        ...


class Call:
    """One call of a native module, as the stages on it see it."""

    __slots__ = ("_around", "_notes", "args", "kwargs", "memory", "module", "output", "replaced")

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        memory: dict[str, Any],
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
        if isinstance(self.output, Tensor):
            self.output = value
        else:
            self.output = type(self.output)((value, *self.output[1:]))
        self.replaced = True


class Stage(NamedTuple):
    """One step of a site: at the input or output of one module, in data-flow order by rank.

    `around`: it puts contexts into `call.around`, to be open while the module runs.
    """

    module: nn.Module
    phase: Phase
    rank: int
    act: Callable[[Call], None]
    around: bool = False


Change: TypeAlias = Literal["none", "connected", "changed"]


def change(read: Tensor, new: Tensor | None) -> Change:
    """What a chain did to a derived value, which decides whether its owner is recomputed.

    "connected": the same numbers, but gradients are to flow through them.
    """
    if new is None:
        return "none"
    if not torch.equal(new.detach(), read.detach()):
        return "changed"
    return "connected" if new.requires_grad and torch.is_grad_enabled() else "none"


def substitute(native: Tensor, recomputed: Tensor, how: Change) -> Tensor:
    """The recomputed tensor; where nothing changed, with the native numbers bit for bit."""
    if how == "changed":
        return recomputed
    return native.detach() + (recomputed - recomputed.detach())


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

    @property
    def may_be_part(self) -> bool:
        """Whether the value can be a view of a larger tensor that it would keep alive."""
        return False

    @abstractmethod
    def stages(self, chain: Chain) -> list[Stage]:
        """What to attach so that the chain sees this point."""

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        """A context that a whole run needs so that this point can be seen."""
        return None


@dataclass(frozen=True)
class InputSite(Site):
    """The input of a module, through a layout. An edit gives the module another input."""

    module: nn.Module
    layout: Layout
    rank: int = 0

    @property
    def may_be_part(self) -> bool:
        return not self.layout.whole

    def stages(self, chain: Chain) -> list[Stage]:
        layout = self.layout

        def act(call: Call) -> None:
            whole = call.input
            new = chain.run(layout.split(whole))
            if new is not None:
                call.replace_input(layout.merge(whole, new))

        return [Stage(self.module, "input", self.rank, act)]


@dataclass(frozen=True)
class SharedInputSite(Site):
    """The input of a module that others read too (a skip connection reads the same tensor).

    An edit is written into that tensor before the module runs, so every reader has it.
    """

    module: nn.Module

    def stages(self, chain: Chain) -> list[Stage]:
        def act(call: Call) -> None:
            shared = call.input
            new = chain.run(shared, in_place=True)
            if new is not None:
                shared.copy_(new)

        return [Stage(self.module, "input", 0, act)]


@dataclass(frozen=True)
class OutputSite(Site):
    """The output of a module, through a layout."""

    module: nn.Module
    layout: Layout
    rank: int = 2

    @property
    def may_be_part(self) -> bool:
        return not self.layout.whole

    def stages(self, chain: Chain) -> list[Stage]:
        layout = self.layout

        def act(call: Call) -> None:
            whole = call.result
            new = chain.run(layout.split(whole))
            if new is not None:
                call.replace_result(layout.merge(whole, new))

        return [Stage(self.module, "output", self.rank, act)]


@dataclass(frozen=True)
class PositionSite(Site):
    """Learned positions: one row for the whole batch natively, one for each example here."""

    module: nn.Module
    tokens: nn.Module

    def stages(self, chain: Chain) -> list[Stage]:
        def count(call: Call) -> None:
            call.memory["batch"] = call.result.shape[0]

        def act(call: Call) -> None:
            rows = call.result
            rows = rows if rows.ndim == 3 else rows.unsqueeze(0)
            batch = call.memory.get("batch", rows.shape[0])
            new = chain.run(rows.expand(batch, -1, -1))
            if new is not None:
                call.replace_result(new)

        return [Stage(self.tokens, "output", 0, count), Stage(self.module, "output", 2, act)]


@dataclass(frozen=True)
class NormScaleSite(Site):
    """A norm's divisor. An edit divides by the edited value instead."""

    norm: Norm

    def stages(self, chain: Chain) -> list[Stage]:
        norm = self.norm

        def act(call: Call) -> None:
            x = call.input
            scale = norm.scale(x)
            new = chain.run(scale)
            how = change(scale, new)
            if how != "none":
                assert new is not None
                normalized = norm.divide(x, new)
                call.notes["normalized"] = normalized
                call.replace_result(substitute(call.result, norm.affine(normalized), how))

        return [Stage(norm.module, "output", 0, act)]


@dataclass(frozen=True)
class NormalizedSite(Site):
    """A norm's output before gain and bias. An edit applies gain and bias to the edited value."""

    norm: Norm

    def stages(self, chain: Chain) -> list[Stage]:
        norm = self.norm

        def act(call: Call) -> None:
            normalized = call.notes.get("normalized")
            if normalized is None:
                normalized = norm.normalize(call.input)
            new = chain.run(normalized)
            how = change(normalized, new)
            if how != "none":
                assert new is not None
                call.replace_result(substitute(call.result, norm.affine(new), how))

        return [Stage(norm.module, "output", 1, act)]


@dataclass(frozen=True)
class ResultSite(Site):
    """What each head writes to the stream: z times its slice of W_O.

    An edit makes the projection's output the sum of the edited writes plus b_O.
    """

    out: Linear
    layout: Layout
    n_heads: int

    def stages(self, chain: Chain) -> list[Stage]:
        def act(call: Call) -> None:
            z = self.layout.split(call.input)
            weight = self.out.weight().unflatten(0, (self.n_heads, -1)).to(z.device)
            result = einsum(z, weight, "... h d, h d m -> ... h m")
            new = chain.run(result)
            how = change(result, new)
            if how != "none":
                assert new is not None
                written = new.sum(-2) + self.out.bias().to(z.device)
                call.replace_result(substitute(call.result, written, how))

        return [Stage(self.out.module, "output", 0, act)]


@dataclass(frozen=True)
class HeadInputSite(Site):
    """The residual stream as each head reads it, before the norm: one copy per head.

    An edit sends the edited copy through the native norm and projection and keeps that head's
    share of the outcome.
    """

    norm: nn.Module
    projection: nn.Module
    layout: Layout
    n_heads: int

    def stages(self, chain: Chain) -> list[Stage]:
        key = f"{self.name} edited"

        def read(call: Call) -> None:
            stream = call.input
            copies = stream.unsqueeze(-2).expand(*stream.shape[:-1], self.n_heads, -1)
            new = chain.run(copies)
            how = change(copies, new)
            if how != "none":
                call.memory[key] = (copies, new)

        def write(call: Call) -> None:
            if key in call.memory:
                copies, new = call.memory.pop(key)
                native = self.layout.split(call.result)
                heads = [self._head(i, copies, new, native) for i in range(self.n_heads)]
                call.replace_result(self.layout.merge(call.result, torch.stack(heads, dim=-2)))

        return [
            Stage(self.norm, "input", 2, read),
            Stage(self.projection, "output", -1, write),
        ]

    def _head(self, i: int, copies: Tensor, new: Tensor, native: Tensor) -> Tensor:
        how = change(copies[..., i, :], new[..., i, :])
        if how == "none":
            return native[..., i, :]
        projected = self.projection.forward(self.norm.forward(new[..., i, :]))
        return substitute(native[..., i, :], self.layout.split(projected)[..., i, :], how)

"""How the tokens of a mixture get to its experts: where the choices are read, and how they change.

`spec.ExpertInput` has the three ways. Each is a `Routing` of one mixture, which the sites of its
choices and of its experts share.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.errors import HookError
from lensbridge.native.experts import Experts
from lensbridge.sites.call import Call, Chain, Phase, Stage

Choices: TypeAlias = tuple[Tensor, Tensor]
"""The indices of the chosen experts and their weights. Shapes: `[t, c]`, both."""


@dataclass(frozen=True)
class Routing(ABC):
    """The way of tokens to the experts of one mixture.

    Args:
        experts: the experts, and the module that is called with tokens for them.
        router: the module that scores the experts.
    """

    experts: Experts
    router: nn.Module

    @property
    @abstractmethod
    def entry(self) -> tuple[nn.Module, Phase]:
        """The module, and which side of it, where the choices can be read and edited."""

    @abstractmethod
    def choices(self, call: Call) -> Choices:
        """The choices, in the call of the entry."""

    @abstractmethod
    def choose(self, call: Call, indices: Tensor, weights: Tensor) -> None:
        """Let the model go on with other choices, in the call of the entry."""

    @abstractmethod
    def notes(self) -> list[Stage]:
        """What has to be noted before the experts run."""

    @abstractmethod
    def visit(self, call: Call, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        """What an expert is given in a call of the experts' module.

        Shapes: `[t, m]`; the rows of the output to which its own outputs are added, `[t]`; what
        they are multiplied by before, `[t, 1]`.
        """


@dataclass(frozen=True)
class Chosen(Routing):
    """The experts' module is called with tokens, indices and weights."""

    @property
    def entry(self) -> tuple[nn.Module, Phase]:
        return self.experts.module, "input"

    def choices(self, call: Call) -> Choices:
        given = (*call.args, *call.kwargs.values())
        if len(given) < 3:
            raise HookError(
                f"{type(call.module).__name__} is called with {len(given)} tensors, and experts "
                "that are given='chosen' are called with tokens, indices and weights."
            )
        return given[1], given[2]

    def choose(self, call: Call, indices: Tensor, weights: Tensor) -> None:
        for at, value in ((1, indices), (2, weights)):
            if at < len(call.args):
                call.args = (*call.args[:at], value, *call.args[at + 1 :])
            else:
                name = list(call.kwargs)[at - len(call.args)]
                call.kwargs = {**call.kwargs, name: value}
        call.replaced = True

    def notes(self) -> list[Stage]:
        return []

    def visit(self, call: Call, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        indices, weights = self.choices(call)
        tokens = call.input.reshape(-1, call.input.shape[-1])
        rows, choices = torch.where(indices.reshape(-1, indices.shape[-1]) == expert)
        return tokens[rows], rows, weights[rows, choices].unsqueeze(-1)


@dataclass(frozen=True)
class OfRouter(Routing):
    """The choices are in what the router returns."""

    wants: ClassVar[str]

    @property
    def entry(self) -> tuple[nn.Module, Phase]:
        return self.router, "output"

    def choices(self, call: Call) -> Choices:
        """The choices; those that an edit chose, if one did."""
        if "choices" not in call.extras:
            call.extras["choices"] = self._returned(call)
        found: Choices = call.extras["choices"]
        return found

    def choose(self, call: Call, indices: Tensor, weights: Tensor) -> None:
        call.extras["choices"] = (indices, weights)
        call.output = self._returning(call, indices, weights)
        call.replaced = True

    def notes(self) -> list[Stage]:
        def note(call: Call, chain: Chain) -> None:
            call.memory[self.router, "choices"] = self.choices(call)

        return [Stage(self.router, "output", 90, note)]

    def _returned(self, call: Call) -> Choices:
        if not self._fits(call.output):
            raise HookError(
                f"{type(call.module).__name__} does not return what the router of experts that are "
                f"given={self.experts.given!r} returns: {self.wants}."
            )
        return self._read(call)

    @abstractmethod
    def _fits(self, output: object) -> bool:
        """Whether the router returns what is expected."""

    @abstractmethod
    def _read(self, call: Call) -> Choices:
        """The choices in what the router returns."""

    @abstractmethod
    def _returning(self, call: Call, indices: Tensor, weights: Tensor) -> object:
        """What the router returns with these choices."""


@dataclass(frozen=True)
class Weighted(OfRouter):
    """The experts' module is called with every token once for each expert, times its weight."""

    wants: ClassVar[str] = "first the weights of all experts, [token, expert]"

    def _fits(self, output: object) -> bool:
        first = output[0] if isinstance(output, tuple) and output else None
        return isinstance(first, Tensor) and tuple(first.shape[1:]) == (self.experts.n,)

    def _read(self, call: Call) -> Choices:
        scores = call.result
        count = int((scores.detach() != 0).sum(-1).max())
        weights, indices = scores.topk(count, dim=-1)
        return indices, weights

    def _returning(self, call: Call, indices: Tensor, weights: Tensor) -> object:
        scores = torch.zeros_like(call.result).scatter(-1, indices, weights)
        return type(call.output)((scores, *call.output[1:]))

    def visit(self, call: Call, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        indices, weights = call.memory[self.router, "choices"]
        tokens = call.input.reshape(self.experts.n, len(indices), -1)
        rows, _ = torch.where(indices == expert)
        return tokens[expert][rows], expert * len(indices) + rows, weights.new_ones(len(rows), 1)


@dataclass(frozen=True)
class Sorted(OfRouter):
    """The mixture sorts the tokens by expert, in the order that the router returns."""

    wants: ClassVar[str] = "order, tokens, weights, how many tokens each expert has, logits"

    def _fits(self, output: object) -> bool:
        return (
            isinstance(output, tuple)
            and len(output) == 5
            and all(isinstance(output[i], Tensor) for i in (0, 1, 2, 4))
            and isinstance(output[3], list)
        )

    def _read(self, call: Call) -> Choices:
        order, _, gates, sizes, logits = call.output
        counts = torch.tensor(sizes, device=order.device)
        experts = torch.arange(len(sizes), device=order.device).repeat_interleave(counts)
        indices = torch.zeros_like(order).scatter(0, order, experts)
        weights = torch.zeros_like(gates).scatter(0, order, gates)
        return indices.view(len(logits), -1), weights.view(len(logits), -1)

    def _returning(self, call: Call, indices: Tensor, weights: Tensor) -> object:
        flat = indices.flatten()
        order = flat.sort(0).indices
        tokens = order.div(indices.shape[-1], rounding_mode="trunc")
        sizes = flat.bincount(minlength=self.experts.n).tolist()
        return order, tokens, weights.flatten()[order], sizes, call.output[4]

    def visit(self, call: Call, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        indices, weights = call.memory[self.router, "choices"]
        tokens = call.input.reshape(-1, call.input.shape[-1])
        rows, choices = torch.where(indices == expert)
        return tokens[rows], rows, weights[rows, choices].unsqueeze(-1)


_KINDS: dict[str, type[Routing]] = {"chosen": Chosen, "all": Weighted, "sorted": Sorted}


def routing_of(experts: Experts, router: nn.Module) -> Routing:
    """How the tokens of a mixture get to these experts."""
    return _KINDS[experts.given](experts, router)

"""Every part of one model under the field's names, and every weight by name."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from operator import attrgetter
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.native.linear import State
from lensbridge.native.norm import Norm
from lensbridge.native.parts import (
    AttentionPart,
    FeedForward,
    MLPPart,
    OpaquePart,
    ResolvedModel,
    StackPart,
)
from lensbridge.weights import effective
from lensbridge.weights.view import PointsHere
from lensbridge.weights.views import (
    AttentionView,
    BlocksView,
    BlockView,
    EmbedView,
    MLPView,
    MoEView,
    NormView,
    UnembedView,
)

Entry: TypeAlias = tuple[str, tuple[Callable[[], Tensor], State]]

_MLP_SIDES = ("in", "gate", "out")


class Components:
    """Every part of one model, and its weights by name."""

    def __init__(
        self,
        native: ResolvedModel,
        run_block: Callable[[int, Tensor], Tensor],
        points: PointsHere | None = None,
    ) -> None:
        self.native = native
        self.blocks = BlocksView(
            [
                BlockView(part, lambda resid, i=i: run_block(i, resid)).with_points(  # type: ignore[misc]
                    points, f"{i}."
                )
                for i, part in enumerate(native.blocks)
            ]
        )

    @property
    def ln_final(self) -> NormView:
        """The norm before the head.

        Raises:
            WeightError: the model has none.
        """
        if self.native.ln_final is None:
            raise WeightError("This model has no norm after its last layer.")
        return NormView(self.native.ln_final)

    @property
    def embed(self) -> EmbedView:
        """The token embedding.

        Raises:
            WeightError: the description of the architecture names none.
        """
        if self.native.main.embed is None:
            raise WeightError("This model has no token embedding that its description names.")
        return EmbedView(self.native.main.embed)

    @property
    def unembed(self) -> UnembedView:
        """The head.

        Raises:
            WeightError: a bare base model has none.
        """
        if self.native.unembed is None:
            raise WeightError(f"{type(self.native.core).__name__} has no language-model head.")
        return UnembedView(self.native.unembed, self.native.unembed_bias)

    @property
    def pos_embed(self) -> EmbedView:
        """The learned positions.

        Raises:
            WeightError: positions are not learned.
        """
        if self.native.main.pos_embed is None:
            raise WeightError("This model has no learned absolute positions, so no W_pos.")
        return EmbedView(self.native.main.pos_embed)

    @cached_property
    def weights(self) -> dict[str, tuple[Callable[[], Tensor], State]]:
        """Every weight: canonical name -> a function that reads it, and how it is stored."""
        return dict(self._weights())

    def _weights(self) -> Iterator[Entry]:
        for stack in self.native.stacks:
            yield from _stack_weights(self.native.front_of(stack), stack)
        if self.native.unembed is not None:
            for name in ("W_U", "b_U"):
                yield f"unembed.{name}", (_reader(self.unembed, name), self.native.unembed.state)


def _stack_weights(at: str, stack: StackPart) -> Iterator[Entry]:
    for name, module in (("embed.W_E", stack.embed), ("pos_embed.W_pos", stack.pos_embed)):
        if module is not None and module._parameters.get("weight") is not None:
            yield f"{at}{name}", (_reader(EmbedView(module), "W"), _table_state(module))
    if stack.ln_embed is not None:
        yield from _norm_weights(f"{at}ln_embed", stack.ln_embed)
    for i, block in enumerate(stack.blocks):
        here = f"{stack.prefix}.{i}."
        for name, attn in (("attn", block.attn), ("cross_attn", block.cross)):
            if attn is not None:
                yield from _attention_weights(f"{here}{name}.", attn)
        if block.mlp is not None:
            yield from _mlp_weights(f"{here}mlp.", block.mlp)
        for slot, norm in block.norms.items():
            yield from _norm_weights(f"{here}{slot}", norm)
    if stack.ln_final is not None:
        yield from _norm_weights(f"{at}ln_final", stack.ln_final)


def _attention_weights(at: str, part: AttentionPart) -> Iterator[Entry]:
    view = AttentionView(part)
    there = {"Q": part.q, "K": part.k, "V": part.v, "O": part.out}
    for kind in "Wb":
        for letter, own in there.items():
            if own is not None:
                held = part.out.state if letter == "O" else effective.state(part, letter.lower())
                yield f"{at}{kind}_{letter}", (_reader(view, f"{kind}_{letter}"), held)


def _mlp_weights(at: str, part: FeedForward) -> Iterator[Entry]:
    if isinstance(part, MLPPart):
        linears = {"in": part.up.linear, "gate": part.gate and part.gate.linear, "out": part.down}
        view: MLPView | MoEView = MLPView(part)
        held = {side: effective.state_of(linear) for side, linear in linears.items() if linear}
    elif isinstance(part, OpaquePart):
        return
    else:
        view = MoEView(part)
        if part.shared is not None:
            yield from _mlp_weights(f"{at}shared.", part.shared)
        if part.experts is None:
            return
        state = _table_state(part.experts.module, "down_proj")
        held = {side: state for side in _MLP_SIDES if side != "gate" or part.experts.gated}
    for kind in "Wb":
        for side in held:
            yield f"{at}{kind}_{side}", (_reader(view, f"{kind}_{side}"), held[side])


def _reader(view: object, name: str) -> Callable[[], Tensor]:
    return partial(attrgetter(name), view)


def _norm_weights(at: str, norm: Norm) -> Iterator[Entry]:
    state, view = _table_state(norm.module, norm.gain_name), NormView(norm)
    yield f"{at}.w", (_reader(view, "w"), state)
    yield f"{at}.b", (_reader(view, "b"), state)


def _table_state(module: nn.Module, name: str = "weight") -> State:
    weight = module._parameters.get(name)
    return "offloaded" if weight is not None and weight.device == torch.device("meta") else "plain"

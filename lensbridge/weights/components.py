"""Every part of one model under the field's names, and every weight by name."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from operator import attrgetter
from typing import TypeAlias

from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.native.holding import Held, held
from lensbridge.native.linear import Linear, fetch
from lensbridge.native.norm import Norm
from lensbridge.native.parts import (
    AttentionPart,
    FeedForward,
    MLPPart,
    OpaquePart,
    ResolvedModel,
    Role,
    StackPart,
)
from lensbridge.native.table import table_held
from lensbridge.tensors.layouts import last_axis_is_output
from lensbridge.weights import effective
from lensbridge.weights.attention_view import AttentionView
from lensbridge.weights.entry import Assign, Source, Weight
from lensbridge.weights.mlp_views import MLPView, MoEView
from lensbridge.weights.view import PointsHere
from lensbridge.weights.views import BlocksView, BlockView, EmbedView, NormView, UnembedView

Entry: TypeAlias = tuple[str, Weight]


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
            WeightError: a bare base model has none, or the description leaves it out.
        """
        kind = type(self.native.core).__name__
        if self.native.has_unnamed_head:
            why = self.native.architecture.undescribed["unembed"]
            raise WeightError(f"The head of {kind} is not described: {why}.")
        if self.native.unembed is None:
            raise WeightError(f"{kind} has no language-model head.")
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
    def weights(self) -> dict[str, Weight]:
        """Every weight: canonical name -> a function that reads it, and where it comes from."""
        return dict(self._weights())

    def _weights(self) -> Iterator[Entry]:
        for stack in self.native.stacks:
            yield from _stack_weights(self.native.front_of(stack), stack)
        head = self.native.unembed
        if head is not None:
            for name in ("W_U", "b_U"):
                source = _of_linear(head, name, added=self.native.unembed_bias)
                yield _entry("unembed.", name, self.unembed, source)


def _stack_weights(at: str, stack: StackPart) -> Iterator[Entry]:
    for part, name, module in (
        ("embed.", "W_E", stack.embed),
        ("pos_embed.", "W_pos", stack.pos_embed),
    ):
        if module is not None and _has_rows(module):
            source = Source(module, "weight", partial(table_held, module))
            yield _entry(f"{at}{part}", name, EmbedView(module), source)
    if stack.ln_embed is not None:
        yield from _norm_weights(f"{at}ln_embed.", stack.ln_embed)
    for i, block in enumerate(stack.blocks):
        here = f"{stack.prefix}.{i}."
        for name, attn in (("attn", block.attn), ("cross_attn", block.cross)):
            if attn is not None:
                yield from _attention_weights(f"{here}{name}.", attn)
        if block.mlp is not None:
            yield from _mlp_weights(f"{here}mlp.", block.mlp)
        for slot, norm in block.norms.items():
            yield from _norm_weights(f"{here}{slot}.", norm)
    if stack.ln_final is not None:
        yield from _norm_weights(f"{at}ln_final.", stack.ln_final)


def _attention_weights(at: str, part: AttentionPart) -> Iterator[Entry]:
    view = AttentionView(part)
    there = {"Q": part.q, "K": part.k, "V": part.v, "O": part.out}
    for kind in "Wb":
        for letter, own in there.items():
            if own is not None and not (kind == "W" and own is part.q and _reads_twice(part)):
                name = f"{kind}_{letter}"
                if isinstance(own, Linear):
                    source = _of_linear(own, name, added=part.writer.bias)
                else:
                    source = _of_role(own, name, partial(effective.held, part, letter.lower()))
                yield _entry(at, name, view, source)


def _reads_twice(part: AttentionPart) -> bool:
    """Whether queries are made of two values, so that there is no one matrix for them."""
    return part.latent is not None and part.latent.q_reads_latent


def _mlp_weights(at: str, part: FeedForward) -> Iterator[Entry]:
    if isinstance(part, OpaquePart):
        return
    if isinstance(part, MLPPart):
        yield from _dense_weights(at, part)
        return
    if part.shared is not None:
        yield from _mlp_weights(f"{at}shared.", part.shared)
    if part.experts is not None:
        view, experts = MoEView(part), part.experts
        for kind, end in (("W", ""), ("b", "_bias")):
            for side, one in experts.weights.items():
                source = Source(one.module, f"{one.name}{end}", partial(experts.held, one))
                yield _entry(at, f"{kind}_{side}", view, source)


def _dense_weights(at: str, part: MLPPart) -> Iterator[Entry]:
    roles = {"in": part.up, "gate": part.gate}
    for kind in "Wb":
        for side, role in roles.items():
            if role is not None:
                name, how = f"{kind}_{side}", partial(effective.share_held, role)
                yield _entry(at, name, MLPView(part), _of_role(role, name, how))
        yield _entry(at, f"{kind}_out", MLPView(part), _of_linear(part.down, f"{kind}_out"))


def _norm_weights(at: str, norm: Norm) -> Iterator[Entry]:
    for name, parameter in (("w", norm.gain_name), ("b", norm.bias_name)):
        offset = 1.0 if norm.unit_offset and name == "w" else 0.0
        source = Source(
            norm.holder, parameter, lambda: norm.held, assign=partial(_assign_less, offset)
        )
        yield _entry(at, name, NormView(norm), source)


def _of_linear(linear: Linear, name: str, added: tuple[nn.Module, str] | None = None) -> Source:
    """The source of a whole weight or bias; `added` is what else is part of that bias."""
    second = None if added is None or not name.startswith("b") else partial(_assign_beside, added)
    return Source(linear.module, _parameter(name), lambda: linear.held, linear, second)


def _of_role(own: Role, name: str, how: Callable[[], Held]) -> Source:
    """The source of a part of a weight or bias."""
    if own.bias is not None and name.startswith("b"):
        module, parameter = own.bias
        return Source(module, parameter, lambda: held(module, parameter), assign=_assign_apart)
    return Source(own.linear.module, _parameter(name), how, own.linear, _assign_part(own, name))


def _parameter(name: str) -> str:
    return "bias" if name.startswith("b") else "weight"


def _assign_part(own: Role, name: str) -> Assign:
    """Heads of a weight are its first axis, so it is turned: `[head, in, d]` as `[in, head, d]`."""

    def assign(stored: Tensor, value: Tensor) -> object:
        if name.startswith("b"):
            return own.layout.assign(stored, value)
        whole = last_axis_is_output(stored, own.linear.transposed)
        return own.layout.assign(whole, value.movedim(0, -2) if value.ndim == 3 else value)

    return assign


def _assign_apart(stored: Tensor, value: Tensor) -> object:
    return stored.copy_(value.reshape(stored.shape))


def _assign_less(offset: float, stored: Tensor, value: Tensor) -> object:
    return stored.copy_(value - offset)


def _assign_beside(added: tuple[nn.Module, str], stored: Tensor, value: Tensor) -> object:
    return stored.copy_(value - fetch(*added).flatten().to(value))


def _entry(at: str, name: str, view: object, source: Source) -> Entry:
    return f"{at}{name}", Weight(partial(attrgetter(name), view), source)


def _has_rows(module: nn.Module) -> bool:
    """Whether a table of rows is there: not in a module that computes them."""
    return module._parameters.get("weight") is not None or held(module).holding in (
        "adapted",
        "quantized",
    )

"""The attention layers of one stack, and the products of their heads' weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from lensbridge.errors import WeightError
from lensbridge.native.parts import AttentionPart, StackPart
from lensbridge.tensors.factored import FactoredMatrix
from lensbridge.tensors.layer_stack import LayerStack
from lensbridge.weights.attention_view import AttentionView

Circuit: TypeAlias = Literal["QK", "OV"]


@dataclass(frozen=True)
class HeadLayers:
    """The layers of a stack whose heads have certain circuits, all of one size.

    Args:
        layers: the numbers of the layers; `views` are their attentions.
    """

    layers: list[int]
    views: list[AttentionView]

    @classmethod
    def of(cls, stack: StackPart, *circuits: Circuit) -> "HeadLayers":
        """The layers of a stack that have all of these circuits.

        Raises:
            WeightError: no layer has them, or layers differ in their heads or widths.
        """
        found = {
            i: block.attn
            for i, block in enumerate(stack.blocks)
            if block.attn is not None and all(_has(block.attn, one) for one in circuits)
        }
        what = " and ".join(circuits)
        if not found:
            raise WeightError(f"No layer of '{stack.prefix}' has heads with {what}.")
        for circuit in circuits:
            _require_one_size(circuit, found)
        return cls(list(found), [AttentionView(part) for part in found.values()])

    def product(self, circuit: Circuit) -> FactoredMatrix:
        """The circuit of every layer and head, read layer by layer when it is indexed."""
        if circuit == "QK":
            left, right = self._stacked(_queries), self._stacked(_keys)
        else:
            left, right = self._stacked(_values), self._stacked(_outputs)
        return FactoredMatrix(left, right)

    def _stacked(self, read: Callable[[AttentionView], Tensor]) -> LayerStack:
        return LayerStack.of([lambda view=view: read(view) for view in self.views])  # type: ignore[misc]


def head_labels(stack: StackPart, layers: list[int], letter: str) -> list[str]:
    """`L3H0`, `L3H1`, ... for every head of some layers, after a `letter`."""
    parts = {i: stack.blocks[i].attn for i in layers}
    return [f"{letter}L{i}H{h}" for i, part in parts.items() if part for h in range(part.n_heads)]


def _queries(view: AttentionView) -> Tensor:
    return view.W_Q


def _keys(view: AttentionView) -> Tensor:
    return view.W_K_expanded.mT


def _values(view: AttentionView) -> Tensor:
    return view.W_V_expanded


def _outputs(view: AttentionView) -> Tensor:
    return view.W_O


def _has(part: AttentionPart, circuit: Circuit) -> bool:
    """Whether a layer has its own keys (or values), rather than those of an earlier layer."""
    return part.q is not None and (part.k if circuit == "QK" else part.v) is not None


def _require_one_size(circuit: Circuit, parts: dict[int, AttentionPart]) -> None:
    sizes: dict[tuple[int, int], list[int]] = {}
    for i, part in parts.items():
        width = part.q.d if circuit == "QK" and part.q is not None else part.d_head
        sizes.setdefault((part.n_heads, width), []).append(i)
    if len(sizes) > 1:
        told = "; ".join(f"{n} heads of {d} in layers {at}" for (n, d), at in sizes.items())
        raise WeightError(
            f"Layers differ, so {circuit} cannot be stacked: {told}. Take it of one layer: "
            f"model.blocks[{next(iter(parts))}].attn.{circuit}."
        )

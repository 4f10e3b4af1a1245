"""Branches: what each layer adds to the stream, where nodes write and read, who reaches whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensbridge.errors import AbsentPointError, InputError
from lensbridge.parts import AttentionPart, BlockPart
from lensbridge.patching.node import Kind, Node
from lensbridge.patching.units import block_of, point_of

if TYPE_CHECKING:
    from lensbridge.model import LensModel

ATTENTION_WRITES = ("hook_attn_out", "hook_cross_attn_out", "hook_mixer_out")
OTHER_WRITES = ("hook_mlp_out", "hook_per_layer_out")
PARTS: Mapping[Kind, Kind] = {"head": "attn", "cross_head": "cross_head", "neuron": "mlp"}
"""Nodes that a branch computes its output from, with others like them."""

_OUTS = {"head": "hook_attn_out", "cross_head": "hook_cross_attn_out", "neuron": "hook_mlp_out"}


@dataclass(frozen=True)
class Branches:
    """The branches of the main stack, and its points by node."""

    model: "LensModel"

    @property
    def blocks(self) -> Sequence[BlockPart]:
        """The layers taken apart."""
        return self.model.native.blocks

    def name(self, layer: int, point: str) -> str:
        """Full name of a point of a layer."""
        return f"{self.model.native.main.prefix}.{layer}.{point}"

    def writes(self, from_layer: int, points: Sequence[str]) -> Iterator[str]:
        """What the layers from one on add to the stream.

        Raises:
            InputError: the inside of a layer is not described, so nothing in it can be held.
        """
        for layer in range(from_layer, len(self.blocks)):
            if self.blocks[layer].residual is None:
                raise InputError(
                    f"The inside of layer {layer} is not described, so its branches cannot be "
                    "held while a path is patched."
                )
            names = (self.name(layer, point) for point in points)
            yield from (name for name in names if name in self.model.vocabulary.index)

    def attention(self, node: Node) -> AttentionPart:
        """The attention that a node is, or is a head of.

        Raises:
            InputError: no such layer.
            AbsentPointError: the layer has no attention.
        """
        attn = block_of(self.model, node).attn
        if attn is None:
            raise AbsentPointError(f"{node}: layer {node.layer} of this model has no attention.")
        return attn

    def written(self, node: Node) -> str:
        """The point at which a sender is replaced: a head at its z, before projection and norm.

        Where z is gated before the projection, the gate reads the stream too; there it is the
        head's result, behind both.

        Raises:
            InputError: it sends nothing, or there is no such layer, head or neuron.
            AbsentPointError: the layer has no such branch.
        """
        if node.kind in ("stream", "logits") or node.component:
            raise InputError(
                f"{node} receives only. Senders are heads, attentions, mixers, MLPs, neurons and "
                "the input."
            )
        if node.kind in ("head", "attn") and self.attention(node).gated and node.index is not None:
            return point_of(self.model, node).replace("hook_z", "hook_result")
        return point_of(self.model, node)

    def out(self, node: Node) -> str:
        """The point of what a branch adds to the stream, by a part of that branch."""
        assert node.layer is not None
        return self.name(node.layer, _OUTS[node.kind])

    def read(self, node: Node) -> str:
        """The point at which a receiver is given what a path brings.

        Raises:
            InputError: it receives nothing, or there is no such layer or head.
            AbsentPointError: the layer has no such branch, or reads another layer's keys.
        """
        if node.kind == "head" and node.component in ("q", "k", "v"):
            self.attention(node)
            return point_of(self.model, node)
        if node.kind == "head":
            raise InputError(f"{node} is a sender. What of the head receives: '{node}<q>', k or v?")
        if node.kind not in ("attn", "mlp") or node.component:
            raise InputError(
                f"{node} sends only. Receivers are 'a3.h5<q>' (k, v), attentions, MLPs, logits."
            )
        if node.kind == "attn":
            self.attention(node)
        block_of(self.model, node)
        assert node.layer is not None
        return self.model.vocabulary.canonical(self.name(node.layer, f"hook_{node.kind}_in"))

    def reaches(self, sender: Node, receiver: Node) -> bool:
        """Whether what one writes is in the stream that the other reads."""
        return self._when_written(sender) <= self._when_read(receiver)

    def _when_written(self, node: Node) -> int:
        if node.layer is None:
            return 0
        parallel = self.blocks[node.layer].residual == "parallel"
        late = node.kind in ("mlp", "neuron") or parallel
        return 2 * node.layer + (2 if late else 1)

    def _when_read(self, node: Node) -> int:
        if node.layer is None:
            return 2 * len(self.blocks)
        parallel = self.blocks[node.layer].residual == "parallel"
        return 2 * node.layer + (1 if node.kind == "mlp" and not parallel else 0)

    @property
    def is_sum(self) -> bool:
        """Whether the stream at the end is a linear function of what the branches add."""
        plain = all(b.residual != "post_norm" and not b.skip_norm for b in self.blocks)
        return plain and self.model.native.main.residual_axes == "b p m"


def by_point(nodes: Mapping[Node, str]) -> dict[str, list[Node]]:
    """Nodes that share a point, as the heads of one layer do."""
    found: dict[str, list[Node]] = {}
    for node, point in nodes.items():
        found.setdefault(point, []).append(node)
    return found

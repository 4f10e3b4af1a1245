"""Reachability: whether a node reads what another one wrote, by the order of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lensbridge.hooked_model import HookedModel
from lensbridge.nodes.node import Node
from lensbridge.nodes.units import stack_of

Through = Literal["nothing", "mlps", "everything"]
"""What a path from a sender to a receiver may go through."""

_STEPS = 4
"""Of a layer: attention and mixer write, then cross-attention, then the MLP."""

_READS = {"cross_head": 1, "mlp": 2}
_WRITES = {"cross_head": 2, "cross": 2, "mlp": 3, "neuron": 3}


@dataclass(frozen=True)
class Reachability:
    """Which receivers a change of a sender can reach.

    Args:
        model: the model.
        through: what a path may go through.
    """

    model: HookedModel
    through: Through

    def reaches(self, sender: Node, receiver: Node) -> bool:
        """Whether a path leads from one to the other."""
        if sender.stack == receiver.stack:
            reads_other = receiver.kind == "cross_head" and receiver.component != "q"
            return not reads_other and self._when_written(sender) <= self._when_read(receiver)
        if receiver.stack is not None:
            return False
        crossed = any(block.cross is not None for block in self.model.native.blocks)
        if not crossed:  # its output is in the stream from the start, as that of an image encoder
            return True
        if receiver.kind == "cross_head" and receiver.component != "q":
            return True
        first = Node("cross", 0)
        return self.through == "everything" and self._when_written(first) <= self._when_read(
            receiver
        )

    def why_not(self, senders: Sequence[Node], receiver: Node) -> str:
        """Why no sender reaches a receiver, in words."""
        names = " and ".join(map(str, senders))
        indirect = Reachability(self.model, "everything")
        if any(indirect.reaches(sender, receiver) for sender in senders):
            return (
                f"There is no path from {names} to {receiver} through {self.through}: every path "
                "goes through cross-attention. Take the keys and values of cross-attention as "
                "receivers ('c0.h0<k>'), or pass through='everything'."
            )
        verb = "writes" if len(senders) == 1 else "write"
        return (
            f"There is no path from {names} to {receiver}: {receiver} reads the stream before "
            f"{names} {verb} to it."
        )

    def _parallel(self, node: Node) -> bool:
        assert node.layer is not None
        return stack_of(self.model, node.stack).blocks[node.layer].residual == "parallel"

    def _when_written(self, node: Node) -> int:
        if node.layer is None:
            return 0
        step = 3 if self._parallel(node) else _WRITES.get(node.kind, 1)
        return _STEPS * node.layer + step

    def _when_read(self, node: Node) -> int:
        if node.layer is None:
            return _STEPS * len(self.model.native.blocks)
        step = 0 if self._parallel(node) else _READS.get(node.kind, 0)
        return _STEPS * node.layer + step

"""Branches: what each layer adds to the stream, and the points where nodes write and read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lensbridge.errors import AbsentPointError, InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.native.parts import AttentionPart, BlockPart
from lensbridge.nodes.node import Kind, Node
from lensbridge.nodes.units import block_of, point_of, stack_of

ATTENTION_WRITES = ("hook_attn_out", "hook_cross_attn_out", "hook_mixer_out")
OTHER_WRITES = ("hook_mlp_out", "hook_per_layer_out")
PARTS: Mapping[Kind, Kind] = {"head": "attn", "cross_head": "cross", "neuron": "mlp"}
"""Kinds of nodes that are parts of a branch, and the kind of that branch."""

HELD: Mapping[str, tuple[str, ...]] = {
    "nothing": (*ATTENTION_WRITES, *OTHER_WRITES),
    "mlps": ATTENTION_WRITES,
    "everything": (),
}
"""What is held at its value in the base run, by what a path may go through."""

_SENDERS = ("input", "head", "cross_head", "attn", "cross", "mixer", "mlp", "neuron")


@dataclass(frozen=True)
class Branches:
    """The branches of a model's stacks, and their points by node."""

    model: HookedModel

    @property
    def blocks(self) -> Sequence[BlockPart]:
        """The layers of the main stack taken apart."""
        return self.model.native.blocks

    def name(self, layer: int, point: str, stack: str | None = None) -> str:
        """Full name of a point of a layer."""
        return f"{stack or self.model.native.main.prefix}.{layer}.{point}"

    def normal(self, node: Node) -> Node:
        """A node whose stack is None where it is the main one.

        Raises:
            InputError: there is no such stack.
        """
        stack = stack_of(self.model, node.stack)
        return replace(node, stack=None) if stack is self.model.native.main else node

    def writes(
        self, from_layer: int, points: Sequence[str], stack: str | None = None
    ) -> Iterator[str]:
        """What the layers of a stack from one on add to the stream.

        Raises:
            InputError: the inside of a layer is not described, or the model changes the stream
                between layers, so that not all can be held.
        """
        for layer, block in list(enumerate(stack_of(self.model, stack).blocks))[from_layer:]:
            if block.residual is None:
                raise InputError(
                    f"The inside of layer {layer} is not described, so its branches cannot be "
                    "held while a path is patched."
                )
            if block.begins_anew and layer > from_layer:
                raise InputError(
                    f"The model changes the stream before layer {layer}, outside of the layers, "
                    "and that cannot be held while a path is patched."
                )
            names = (self.name(layer, point, stack) for point in points)
            yield from (name for name in names if name in self.model.vocabulary.index)

    def held(self, senders: Sequence[Node], through: str) -> list[str]:
        """What is held when these nodes are senders: what later layers of their stacks add, and of
        the main stack.

        Raises:
            InputError: the inside of a layer is not described.
        """
        first: dict[str | None, int] = {}
        for node in senders:
            first[node.stack] = min(node.layer or 0, first.get(node.stack, node.layer or 0))
        if set(first) != {None}:
            first[None] = 0
        pairs = first.items()
        return [name for stack, i in pairs for name in self.writes(i, HELD[through], stack)]

    def last(self, receivers: Sequence[Node]) -> list[str]:
        """The stream at the end, where the logits are a receiver beside others."""
        to_logits = any(node.kind == "logits" for node in receivers)
        beside = to_logits and any(node.kind != "logits" for node in receivers)
        return [self.name(len(self.blocks) - 1, "hook_resid_post")] if beside else []

    def attention(self, node: Node) -> AttentionPart:
        """The attention that a node is, or is a head of.

        Raises:
            InputError: no such layer.
            AbsentPointError: the layer has no attention.
        """
        block, crossing = block_of(self.model, node), node.kind in ("cross", "cross_head")
        attn = block.cross if crossing else block.attn
        if attn is None:
            what = "cross-attention" if crossing else "attention"
            raise AbsentPointError(f"{node}: layer {node.layer} of this model has no {what}.")
        return attn

    def written(self, node: Node) -> str:
        """The point at which a sender is replaced: a head at its z, before projection and norm.

        Where z is gated before the projection, the gate reads the stream too. Such a head is
        replaced at its result, after both.

        Raises:
            InputError: it is not a sender, or there is no such layer, head or neuron.
            AbsentPointError: the layer has no such branch.
        """
        if node.kind not in _SENDERS or node.component:
            raise InputError(
                f"{node} receives only. Senders are heads, attentions, mixers, MLPs, neurons and "
                "the input."
            )
        if node.kind in ("head", "attn", "cross_head", "cross"):
            attn = self.attention(node)
            if attn.gated and node.index is not None:
                _check_gated(node, attn)
                return point_of(self.model, node).replace("hook_z", "hook_result")
        return point_of(self.model, node)

    def out(self, node: Node) -> str:
        """The point of what a branch adds to the stream; `node` is the branch or a part of it."""
        return point_of(self.model, replace(node, kind=PARTS.get(node.kind, node.kind), index=None))

    def read(self, node: Node) -> str:
        """The point at which a receiver's input is edited.

        Raises:
            InputError: it is not a receiver, or there is no such layer or head.
            AbsentPointError: the layer has no such branch, or reads another layer's keys.
        """
        if node.kind in ("head", "cross_head") and node.component in ("q", "k", "v"):
            self.attention(node)
            return point_of(self.model, node)
        if node.kind in ("head", "cross_head"):
            raise InputError(
                f"{node} is a sender. As a receiver name one of its inputs: '{node}<q>', k or v."
            )
        if node.kind not in ("attn", "mlp") or node.component:
            raise InputError(
                f"{node} sends only. Receivers are 'a3.h5<q>' (k, v), 'c3.h5<q>' (k, v), "
                "attentions, MLPs, logits."
            )
        if node.kind == "attn":
            self.attention(node)
        block_of(self.model, node)
        assert node.layer is not None
        name = self.name(node.layer, f"hook_{node.kind}_in", node.stack)
        return self.model.vocabulary.canonical(name)

    @property
    def is_sum(self) -> bool:
        """Whether the stream at the end is a linear function of what the branches add."""
        sums = ("sequential", "parallel")
        plain = all(block.residual in sums and not block.skip_norm for block in self.blocks)
        return plain and self.model.native.main.residual_axes == "b p m"


def _check_gated(node: Node, attn: AttentionPart) -> None:
    """Refuse a gated head whose output goes through a norm: its result is known only after that
    norm, whose divisor would differ in the patched run.
    """
    if attn.post_norm is not None:
        raise InputError(
            f"{node}: in this model z is gated and the heads go through a norm together before "
            f"they are added, so one head cannot be a sender. Use 'a{node.layer}', all heads of "
            "the layer."
        )


def by_point(nodes: Mapping[Node, str]) -> dict[str, list[Node]]:
    """Nodes that share a point, as the heads of one layer do."""
    found: dict[str, list[Node]] = {}
    for node, point in nodes.items():
        found.setdefault(point, []).append(node)
    return found

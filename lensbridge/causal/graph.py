"""The graph of a model: which nodes write to the stream and which read it, in order."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from lensbridge.cache.residual.terms import Mark, Term, Through, Times, residual_terms
from lensbridge.causal.edge import Edge
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.native.parts import AttentionPart, BlockPart, StackPart
from lensbridge.nodes.node import Node

Reader = Literal["attn", "mixer", "mlp", "logits"]


@dataclass(frozen=True)
class Read:
    """An event: a branch reads the stream.

    Args:
        reader: which branch.
        layer: of which layer; None for the logits.
        receivers: the nodes of that branch.
    """

    reader: Reader
    layer: int | None
    receivers: tuple[Node, ...]


@dataclass(frozen=True)
class Write:
    """An event: a branch adds a term to the stream, which is the sum of what its nodes write."""

    term: Term
    senders: tuple[Node, ...]


Event: TypeAlias = Read | Write | Through | Times
"""What happens to the residual stream in one step."""


@dataclass(frozen=True)
class Graph:
    """Senders, receivers and edges of a model's main stack.

    Senders are the input (the stream before the first layer) and every head, mixer and MLP (a
    mixture of experts counts as one). Receivers are the query, key and value inputs of every head
    (keys and values by key/value head), the inputs of attention gates, latent attentions, mixers
    and MLPs, and the logits (the input of the final norm).
    """

    model: HookedModel

    @classmethod
    def of(cls, model: HookedModel) -> "Graph":
        """The graph of a model.

        Raises:
            InputError: a model whose stream is not a sum of described branches.
        """
        native = model.native
        if native.is_encoder_decoder:
            raise InputError(
                "Edges connect parts of one residual stream, and "
                f"{type(native.core).__name__} has two, joined by cross-attention. Attribute to "
                "the nodes of each instead (stack='encoder')."
            )
        if native.main.residual_axes != "b p m":
            raise InputError(
                "Edges connect parts of one residual stream, and this model has several. Attribute "
                "to nodes instead (granularity='node')."
            )
        for i, block in enumerate(native.blocks):
            why = _why_not(block)
            if why is not None:
                raise InputError(
                    f"{why} in layer {i}, so its edges are not known. Attribute to nodes instead "
                    "(granularity='node')."
                )
        return cls(model)

    @property
    def stack(self) -> StackPart:
        """The stack."""
        return self.model.native.main

    def at(self, layer: int) -> str:
        """The prefix of the names of a layer's points."""
        return f"{self.stack.prefix}.{layer}."

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Everything that happens to the stream, in order: reads, writes, norms and factors."""
        return tuple(self._events())

    def _events(self) -> Iterator[Event]:
        for step in residual_terms(self.stack, lambda name: name in self.model.vocabulary.index):
            if isinstance(step, Mark):
                yield from self._reads(step.point)
            elif isinstance(step, Term):
                yield Write(step, self._written(step))
            else:
                yield step

    def _reads(self, point: str) -> Iterator[Read]:
        head, _, last = point.rpartition(".")
        layer = int(head.rpartition(".")[2])
        block = self.stack.blocks[layer]
        if last == "hook_resid_pre" and block.attn is not None:
            yield Read("attn", layer, tuple(attention_receivers(layer, block.attn)))
        if last == "hook_resid_pre" and block.mixer is not None:
            yield Read("mixer", layer, (Node("mixer", layer),))
        if last == self._read_by_mlp(layer, block):
            yield Read("mlp", layer, (Node("mlp", layer),))
        if last == "hook_resid_post":
            yield Read("logits", None, (Node("logits"),))

    def _read_by_mlp(self, layer: int, block: BlockPart) -> str | None:
        middle = f"{self.at(layer)}hook_resid_mid" in self.model.vocabulary.index
        if block.mlp is None:
            return None
        return "hook_resid_mid" if middle else "hook_resid_pre"

    def _written(self, term: Term) -> tuple[Node, ...]:
        if term.kind == "attn" and term.part is not None and term.part.attn is not None:
            return tuple(Node("head", term.layer, h) for h in range(term.part.attn.n_heads))
        if term.kind in ("mixer", "mlp"):
            return (Node(term.kind, term.layer),)
        return ()

    @cached_property
    def senders(self) -> tuple[Node, ...]:
        """Everything that writes, in the order of the stream."""
        written = [n for one in self.events if isinstance(one, Write) for n in one.senders]
        return (Node("input"), *written)

    @cached_property
    def receivers(self) -> tuple[Node, ...]:
        """Everything that reads, in the order of the stream."""
        return tuple(n for one in self.events if isinstance(one, Read) for n in one.receivers)

    @cached_property
    def reach(self) -> dict[Node, int]:
        """How many senders each receiver reads; they are the first ones of `senders`."""
        found, count = {}, 1
        for one in self.events:
            if isinstance(one, Write):
                count += len(one.senders)
            elif isinstance(one, Read):
                found.update(dict.fromkeys(one.receivers, count))
        return found

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge: each receiver with each sender that it reads."""
        return tuple((s, r) for r, n in self.reach.items() for s in self.senders[:n])

    @property
    def goes_through_norms(self) -> bool:
        """Whether what a sender writes goes through a norm, and so depends on the other senders."""
        post_norms = [
            block.attn is not None and block.attn.post_norm for block in self.stack.blocks
        ]
        return any(post_norms) or any(isinstance(one, Through) for one in self.events)


INSIDE = (".attn.hook_", ".mlp.", ".mixer.", ".hook_mlp_out", ".hook_mixer_out")
"""Parts of the names of points where an edit changes what a branch computes and so what it adds."""


def check_unedited(model: HookedModel) -> None:
    """Refuse hooks that change the stream other than through what branches write.

    Raises:
        InputError: such a hook is on the model.
    """
    current = model.engine.current
    hooks = [*model.engine.permanent, *([] if current is None else current.scoped)]
    for hook in hooks:
        inside = any(part in hook.name for part in INSIDE) and "hook_result" not in hook.name
        if hook.kind == "edit" and "." in hook.name and not inside:
            raise InputError(
                f"A hook at {hook.name} may change the stream itself, so that edges would not sum "
                "to what is read. Remove it, or hook what heads and MLPs compute (attn.hook_z, "
                "mlp.hook_post, hook_mlp_out)."
            )


def _why_not(block: BlockPart) -> str | None:
    """Why a layer has no edges, or None."""
    if block.residual is None:
        return "The residual stream is not described"
    if block.begins_anew:
        return "The model changes the stream before it, outside of the layers"
    if block.per_layer is not None:
        return "A branch other than attention and MLP reads the stream (hook_per_layer_out)"
    if block.cross is not None:
        return "Cross-attention reads another stack"
    if block.mixer is not None and block.mixer.fed_more:
        return "The mixer reads more than the stream (the output of a shared block is added to it)"
    return None


def attention_receivers(layer: int, attn: AttentionPart) -> Iterator[Node]:
    """The receivers of an attention."""
    if attn.latent is not None or attn.q is None:  # heads read what all of them share
        yield Node("attn", layer)
        return
    for letter, role in (("q", attn.q), ("k", attn.k), ("v", attn.v)):
        if role is not None:
            yield from (Node("head", layer, i, letter) for i in range(role.n))  # type: ignore[arg-type]
    if attn.gated:
        yield Node("attn", layer, None, "gate")


def enumerate_edges(model: HookedModel) -> list[Edge]:
    """Every edge of a model's main stack.

    Raises:
        InputError: a model whose stream is not a sum of described branches.
    """
    return list(Graph.of(model).edges)

"""The residual stream as a sum over senders, followed from the first layer to the last."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.cache.residual.decomposition import Decomposition
from lensbridge.cache.residual.norm_map import NormMap, Route
from lensbridge.cache.residual.target import Target
from lensbridge.cache.residual.terms import Through, Times
from lensbridge.causal.graph import Graph, Read, Write
from lensbridge.tensors.slices import taken


def points_of_senders(graph: Graph) -> list[str]:
    """The points that a run has to keep so that its stream can be decomposed by sender."""
    at, found = graph.at, [f"{graph.at(0)}hook_resid_pre"]
    for event in graph.events:
        if isinstance(event, Through):
            found.append(event.scale)
        if not isinstance(event, Write) or event.term.kind == "bias":
            continue
        found.append(event.term.point)
        part, layer = event.term.part, event.term.layer
        if event.term.kind != "attn" or part is None or part.attn is None or layer is None:
            continue
        found.append(f"{at(layer)}attn.hook_{'result' if part.attn.gated else 'z'}")
        if part.attn.post_norm is not None:
            found.append(f"{at(layer)}ln1_post.hook_scale")
    return [*found, f"{at(len(graph.stack.blocks) - 1)}hook_resid_post"]


@dataclass
class Stream:
    """The stream of one run (or the difference of two) as a row for each sender.

    The first row is the input. It also has what no other sender accounts for: the biases, which
    differ between runs if they go through a norm. So the rows always sum to the stream.

    Args:
        graph: the senders.
        values: activations, or their differences between two runs if the stream goes through no
            norm.
        pos: which positions.
        is_difference: whether they are differences, in which biases cancel.
    """

    graph: Graph
    values: Mapping[str, Tensor]
    pos: slice
    is_difference: bool

    def __post_init__(self) -> None:
        start = taken(self.values[f"{self.graph.at(0)}hook_resid_pre"], self.pos, -2)
        wide = torch.promote_types(start.dtype, torch.float32)
        self._rows = start.new_empty(len(self.graph.senders), *start.shape, dtype=wide)
        self._rows[0] = start
        self._count = 1
        target = Target(f"{self.graph.at(0)}hook_resid_pre", None, "")  # for its shape alone
        self._taking = Decomposition(
            self.values, self.graph.model.vocabulary, self.graph.stack, "", target, self.pos
        )

    @property
    def rows(self) -> Tensor:
        """What each sender has written so far.

        Shapes: `[sender, batch, pos, d_model]`
        """
        return self._rows[: self._count]

    def advance(self, event: Read | Write | Through | Times) -> None:
        """Take one event of the stream into account."""
        if isinstance(event, Write):
            self._write(event)
        elif isinstance(event, Through):
            divisor = taken(self.values[event.scale], self.pos, -2)
            self._pass(NormMap.of(event.norm, divisor))
        elif isinstance(event, Times):
            value = event.scale.value(self.rows)
            self._pass(NormMap(gain=value.detach() if isinstance(value, Tensor) else value))

    def _pass(self, passage: NormMap) -> None:
        self.rows.copy_(passage.forward(self.rows))

    def _write(self, event: Write) -> None:
        term = event.term
        if term.kind == "bias" and self.is_difference:
            return
        whole = self._taking.whole(term, Route())
        if not event.senders:
            self._rows[0] += whole.to(self._rows)
            return
        new = self._rows[self._count : self._count + len(event.senders)]
        if event.senders[0].kind == "head":
            new.copy_(self._taking.heads(term, Route()))
            if not self.is_difference:
                self._rows[0] += whole.to(self._rows) - new.sum(0)
        else:
            new[0] = whole
        self._count += len(event.senders)


def difference(
    other: Mapping[str, Tensor], base: Mapping[str, Tensor], points: list[str]
) -> dict[str, Tensor]:
    """The value of each point in one run minus that in another."""
    with torch.no_grad():
        return {point: other[point] - base[point] for point in dict.fromkeys(points)}

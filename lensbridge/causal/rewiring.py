"""A run in which receivers read the contributions of some senders from another run."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.causal.edge import Edge
from lensbridge.causal.graph import Graph, Read
from lensbridge.causal.receiver_gradients import reading_norm
from lensbridge.causal.streams import Stream, points_of_senders
from lensbridge.hooks.callbacks import Hook

Hooks = list[tuple[str, Callable[[Tensor, Hook], Tensor | None]]]
EVERYWHERE = slice(None)


@dataclass(frozen=True)
class Rewired:
    """The residual stream of another run, whose contributions receivers read instead of this run's.

    Both streams are decomposed by sender while the model runs, through every norm with the divisors
    of its own run. So if no edge is kept, each receiver reads exactly the stream of the other run.

    Args:
        graph: senders and receivers.
        values: activations of the other run.
        take: makes the replacement from its rows, `[sender, batch, pos, d_model]` -> the same.
        positions: the positions that edges have; one None where edges are for all positions.
    """

    graph: Graph
    values: Mapping[str, Tensor]
    take: Callable[[Tensor], Tensor]
    positions: tuple[int | None, ...] = (None,)

    def run(self, given: Any, parts: Collection[Edge], kept: bool) -> Tensor:
        """Logits of a run on `given` in which only these edges are kept, or only these are not."""
        noted: dict[str, Tensor] = {}

        def note(value: Tensor, hook: Hook) -> None:
            noted[hook.name] = value.clone()

        following = _Following(self, noted, self._swapped(parts, kept))
        hooks: Hooks = []
        for event in self.graph.events:
            if isinstance(event, Read):
                hooks += following.hooks(event)
        points = dict.fromkeys([*points_of_senders(self.graph), *self._streams()])
        noting: Hooks = [(point, note) for point in points]
        return self.graph.model.run_with_hooks(given, [*noting, *hooks])

    def _swapped(self, parts: Collection[Edge], kept: bool) -> dict[Read, Tensor]:
        """Which senders each receiver reads from the other run, by the branch that reads.

        Shapes: `[receiver, sender, pos]`; one position where edges are for all positions.
        """
        graph, found = self.graph, {}
        senders, receivers, positions = (
            {one: i for i, one in enumerate(several)}
            for several in (graph.senders, graph.receivers, self.positions)
        )
        table = torch.full((len(receivers), len(senders), len(positions)), kept)
        places = [
            (receivers[r.anywhere], senders[s.anywhere], positions[r.position]) for s, r in parts
        ]
        if places:
            table[tuple(torch.tensor(places).T)] = not kept
        for event in graph.events:
            if isinstance(event, Read):
                first, reach = receivers[event.receivers[0]], graph.reach[event.receivers[0]]
                found[event] = table[first : first + len(event.receivers), :reach]
        return found

    def _streams(self) -> list[str]:
        """The points of the streams that attentions and mixers read, to compute their inputs."""
        return [f"{self.graph.at(i)}hook_resid_pre" for i in range(len(self.graph.stack.blocks))]


class _Following:
    """The hooks of one run, which edit the input of each receiver."""

    def __init__(
        self, rewired: Rewired, noted: dict[str, Tensor], swapped: Mapping[Read, Tensor]
    ) -> None:
        self.graph = rewired.graph
        self.rewired = rewired
        self.noted = noted
        self.swapped = swapped
        self.reached = 0
        self.streams: tuple[Stream, Stream] | None = None
        self.changes: dict[Read, Tensor] = {}

    def hooks(self, event: Read) -> Hooks:
        """The hooks at the points where a branch reads."""
        if not self.swapped[event].any():
            return []
        if event.layer is None:
            last = len(self.graph.stack.blocks) - 1
            return [(f"{self.graph.at(last)}hook_resid_post", self._whole(event))]
        at = self.graph.at(event.layer)
        if event.reader == "mlp":
            return [(f"{at}hook_mlp_in", self._whole(event))]
        if event.reader == "mixer":
            return [(f"{at}mixer.hook_in", self._mixer(event))]
        found: Hooks = []
        if any(node.kind == "attn" for node in event.receivers):  # the last, where there are heads
            found.append((f"{at}hook_attn_in", self._whole(event)))
        for letter in "qkv":
            index = [i for i, n in enumerate(event.receivers) if n.component == letter]
            if index:
                found.append((f"{at}hook_{letter}_input", self._heads(event, index)))
        return found

    def _change(self, event: Read) -> Tensor:
        """The edit of each receiver's input: what it is to read minus the stream.

        Shapes: `[receiver, batch, pos, d_model]`
        """
        while event not in self.changes:  # branches of one layer may read in any order
            self._advance()
        return self.changes[event]

    def _advance(self) -> None:
        if self.streams is None:
            sources = (self.noted, self.rewired.values)
            now, other = (Stream(self.graph, one, EVERYWHERE, False) for one in sources)
            self.streams = (now, other)
        reached = self.graph.events[self.reached]
        self.reached += 1
        for stream in self.streams:
            stream.advance(reached)
        if isinstance(reached, Read):
            for past in [one for one in self.changes if one.layer != reached.layer]:
                del self.changes[past]
            self.changes[reached] = self._changed(self.swapped[reached], *self.streams)

    def _changed(self, swapped: Tensor, now: Stream, other: Stream) -> Tensor:
        """The edit, computed from only those senders that are replaced for some receiver."""
        replaced = swapped.any(0).any(-1).nonzero().flatten().to(now.rows.device)
        rows = now.rows[replaced]
        there = self.rewired.take(other.rows[replaced]).expand_as(rows)
        weights = swapped[:, replaced.cpu()].to(rows).expand(-1, -1, rows.shape[2])
        return torch.einsum("vup,ubpm->vbpm", weights, there - rows)

    def _whole(self, event: Read) -> Callable[[Tensor, Hook], Tensor]:
        return lambda value, hook: value + self._change(event)[-1].to(value)

    def _heads(self, event: Read, index: list[int]) -> Callable[[Tensor, Hook], Tensor]:
        stream = f"{self.graph.at(event.layer or 0)}hook_resid_pre"

        def give(copies: Tensor, hook: Hook) -> Tensor:
            own = self._change(event)[index].movedim(0, -2)
            return self.noted[stream].unsqueeze(-2) + own.to(copies)

        return give

    def _mixer(self, event: Read) -> Callable[[Tensor, Hook], Tensor]:
        assert event.layer is not None
        norm = reading_norm(self.graph.stack.blocks[event.layer])
        stream = f"{self.graph.at(event.layer)}hook_resid_pre"

        def give(value: Tensor, hook: Hook) -> Tensor:
            before = self.noted[stream]
            after = before + self._change(event)[0].to(before)
            if norm is None:
                return value + (after - before)
            return value + (norm.module.forward(after) - norm.module.forward(before))

        return give

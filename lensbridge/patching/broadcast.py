"""Broadcast: path patching from several senders of one layer to the same receivers, in one batch.

Each row is the unpatched run with one clean sender. Before the sender's layer nothing differs, so
rows start there. If the stream is a sum and every other branch is held, what a sender adds stays in
the stream unchanged until it is read, so the layers between are left out. Inside `model.intervene`
they run, because its interventions may change the stream there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Hook
from lensbridge.nodes.branches import Branches, by_point
from lensbridge.nodes.node import Node
from lensbridge.patching.paths import Pairs, Paths
from lensbridge.points.names import layer_of
from lensbridge.sweeps.rows import run_rows, same


@dataclass(frozen=True)
class Broadcast:
    """Paths from many senders, one layer of them at a time.

    Args:
        paths: the senders and both runs; `streams` of the corrupted run were kept.
        receivers: where the paths end.
        reads: the positions of the logits that the metric reads.
    """

    paths: Paths
    receivers: Sequence[Node]
    reads: Sequence[int]

    @staticmethod
    def streams(
        model: HookedModel, senders: Iterable[Node], receivers: Iterable[Node]
    ) -> list[str]:
        """The points of the streams that batches start from; the unpatched run has to keep them."""
        branches = Branches(model)
        layers = {n.layer for n in (*senders, *receivers) if n.layer is not None and not n.stack}
        needed = {len(branches.blocks), *layers, *(i + 1 for i in layers)}
        return [_stream(branches, i) for i in sorted(needed)]

    def logits(self, senders: Sequence[Node]) -> list[Tensor] | None:
        """Logits of each sender at the positions that are read; None if the control row fails.

        The control row has no clean sender, so it has to give the logits of the unpatched run.
        """
        rows, noted = self._frozen(senders)
        if noted:
            rows = self._received(rows, noted)
        base = self.paths.base
        found = base.model(rows[:, list(self.reads)], start_at_layer=self._depth)
        control, *parts = found.split(base.batch)
        return parts if same(control, base.logits[:, list(self.reads)], kernels=True) else None

    # --- the two runs ------------------------------------------------------------------------

    def _frozen(self, senders: Sequence[Node]) -> tuple[Tensor, dict[str, Tensor]]:
        """The stream at the end of the frozen run, and the values of the receivers' points."""
        noted: dict[str, Tensor] = {}
        hooks = [*self._sending(senders), *self._holding(senders)]
        hooks += [(point, _noting(noted)) for point in dict.fromkeys(self._ends.values())]
        layer = senders[0].layer
        assert layer is not None
        here, rows = layer, self._copies(layer, 1 + len(senders))
        for start, stop in self._stretches(layer):
            rows = self._run(self._carried(rows, here, start), hooks, start, stop)
            here = stop
        return (self._carried(rows, here, self._depth) if self._to_logits else rows), noted

    def _received(self, rows: Tensor, noted: dict[str, Tensor]) -> Tensor:
        """The stream at the end of the run in which the receivers alone have changed inputs.

        Args:
            rows: the stream at the end of the frozen run, in case the logits are a receiver.
            noted: the values of the receivers' points in that run.
        """
        count = len(rows) // self.paths.base.batch
        first = min(layer_of(point) or 0 for point in noted)
        hooks = [(point, _placing(value, self._by_point[point])) for point, value in noted.items()]
        stream = self._run(self._copies(first, count), hooks, first, self._depth)
        return stream + (rows - self._copies(self._depth, count)) if self._to_logits else stream

    def _stretches(self, layer: int) -> Iterator[tuple[int, int]]:
        """The spans of layers that the frozen run computes, from the senders' own layer on."""
        last = max(map(_layer, self._ends), default=layer)
        end = self._depth if self._to_logits else last + 1
        if not self._carries:
            yield layer, end
            return
        needed = {layer, *(_layer(node) for node in self._ends if _layer(node) >= layer)}
        yield from ((one, one + 1) for one in sorted(needed))

    def _carried(self, rows: Tensor, here: int, there: int) -> Tensor:
        """Rows at a later layer; the layers between add what they added in the unpatched run."""
        if here == there:
            return rows
        count = len(rows) // self.paths.base.batch
        return self._copies(there, count) + (rows - self._copies(here, count))

    # --- the paths ---------------------------------------------------------------------------

    @cached_property
    def _carries(self) -> bool:
        """Whether what is added to the stream stays in it unchanged."""
        branches = self.paths.branches
        scaled = not all(block.keeps_stream for block in branches.blocks)
        edited = any(one.kind != "read" for one in self.paths.base.model.engine.listening)
        plain = branches.is_sum and not scaled and not edited
        return self.paths.through == "nothing" and plain

    @cached_property
    def _ends(self) -> dict[Node, str]:
        read = self.paths.branches.read
        return {node: read(node) for node in self.receivers if node.kind != "logits"}

    @cached_property
    def _by_point(self) -> dict[str, list[Node]]:
        return by_point(self._ends)

    @property
    def _to_logits(self) -> bool:
        return len(self._ends) < len(self.receivers)

    @property
    def _depth(self) -> int:
        return len(self.paths.branches.blocks)

    # --- rows --------------------------------------------------------------------------------

    def _copies(self, layer: int, count: int) -> Tensor:
        """Copies of the unpatched stream before a layer, or after the last one."""
        base = self.paths.base
        if layer < self._depth:
            return _repeated(base.stream(layer), count)
        return _repeated(base.cache[_stream(self.paths.branches, layer)], count)

    def _sending(self, senders: Sequence[Node]) -> Pairs:
        """Hooks that make each sender clean in its own row; row 0 is the control."""
        points: dict[str, list[tuple[int, Node]]] = {}
        for i, node in enumerate(senders, start=1):
            points.setdefault(self.paths.senders[node], []).append((i, node))
        return [(point, self._clean(self.paths.clean[point], own)) for point, own in points.items()]

    def _clean(self, value: Tensor, own: Sequence[tuple[int, Node]]) -> Callable[..., None]:
        batch = self.paths.base.batch

        def send(activation: Tensor, hook: Hook) -> None:
            for i, node in own:
                rows = activation[i * batch : (i + 1) * batch]
                rows[node.place] = value.expand_as(rows)[node.place]

        return send

    def _holding(self, senders: Sequence[Node]) -> Pairs:
        """Hooks that hold every branch but the senders' own: only the senders can change these."""
        branches, count = self.paths.branches, 1 + len(senders)
        own = {branches.out(node) for node in senders}
        held = [one for one in branches.held(senders, self.paths.through) if one not in own]
        cache = self.paths.base.cache
        return [(point, _holding(cache[point], count)) for point in held]

    def _run(self, rows: Tensor, hooks: Pairs, start: int, stop: int) -> Tensor:
        """Run rows over a span of layers."""
        inside = [pair for pair in hooks if layer_of(pair[0]) in range(start, stop)]
        return run_rows(self.paths.base, rows, inside, start, stop)


def _stream(branches: Branches, layer: int) -> str:
    """The point of the stream before a layer, or after the last one."""
    if layer < len(branches.blocks):
        return branches.name(layer, "hook_resid_pre")
    return branches.name(layer - 1, "hook_resid_post")


def _layer(node: Node) -> int:
    assert node.layer is not None
    return node.layer


def _repeated(one: Tensor, count: int) -> Tensor:
    return one.repeat(count, *[1] * (one.ndim - 1))


def _noting(noted: dict[str, Tensor]) -> Callable[..., None]:
    def note(activation: Tensor, hook: Hook) -> None:
        noted[hook.name] = activation.clone()

    return note


def _holding(value: Tensor, count: int) -> Callable[..., Tensor]:
    def hold(activation: Tensor, hook: Hook) -> Tensor:
        return _repeated(value, count)

    return hold


def _placing(value: Tensor, own: Sequence[Node]) -> Callable[..., None]:
    def place(activation: Tensor, hook: Hook) -> None:
        for node in own:
            activation[node.place] = value[node.place]

    return place

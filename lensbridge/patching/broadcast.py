"""Broadcast: several senders of one layer as rows of a batch, heard by the same receivers.

A row is the unpatched run in which one sender is clean. Up to the sender's layer it is that run, so
it starts there. Where the stream is a sum and everything is held, what a sender adds stays as it is
until it is read: the layers between are left out.
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
    """Paths of many senders, a layer of them at a time.

    Args:
        paths: the senders, and both runs; `streams` were kept of the corrupted one.
        receivers: who hears them.
        reads: the positions of the logits that are read.
    """

    paths: Paths
    receivers: Sequence[Node]
    reads: Sequence[int]

    @staticmethod
    def streams(
        model: HookedModel, senders: Iterable[Node], receivers: Iterable[Node]
    ) -> list[str]:
        """The streams that a batch starts from; the unpatched run has to keep them."""
        branches = Branches(model)
        layers = {n.layer for n in (*senders, *receivers) if n.layer is not None and not n.stack}
        needed = {len(branches.blocks), *layers, *(i + 1 for i in layers)}
        return [_stream(branches, i) for i in sorted(needed)]

    def logits(self, senders: Sequence[Node]) -> list[Tensor] | None:
        """Logits at the positions that are read, of each sender; None if the control fails.

        The control is a row in which nobody is clean, which has to be the unpatched run.
        """
        rows, noted = self._frozen(senders)
        if noted:
            rows = self._heard(rows, noted)
        base = self.paths.base
        found = base.model(rows[:, list(self.reads)], start_at_layer=self._depth)
        control, *parts = found.split(base.batch)
        return parts if same(control, base.logits[:, list(self.reads)], kernels=True) else None

    # --- the two runs ------------------------------------------------------------------------

    def _frozen(self, senders: Sequence[Node]) -> tuple[Tensor, dict[str, Tensor]]:
        """The stream at the end of the frozen run, and what the receivers' points hold in it."""
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

    def _heard(self, rows: Tensor, noted: dict[str, Tensor]) -> Tensor:
        """The stream at the end when the receivers alone have heard.

        Args:
            rows: the stream at the end of the frozen run, if the logits hear it too.
            noted: what the receivers hold in it.
        """
        count = len(rows) // self.paths.base.batch
        first = min(layer_of(point) or 0 for point in noted)
        hooks = [(point, _placing(value, self._by_point[point])) for point, value in noted.items()]
        heard = self._run(self._copies(first, count), hooks, first, self._depth)
        return heard + (rows - self._copies(self._depth, count)) if self._to_logits else heard

    def _stretches(self, layer: int) -> Iterator[tuple[int, int]]:
        """The layers that the frozen run goes through, from the senders' own on."""
        last = max(map(_layer, self._ends), default=layer)
        end = self._depth if self._to_logits else last + 1
        if not self._carries:
            yield layer, end
            return
        needed = {layer, *(_layer(node) for node in self._ends if _layer(node) >= layer)}
        yield from ((one, one + 1) for one in sorted(needed))

    def _carried(self, rows: Tensor, here: int, there: int) -> Tensor:
        """Rows further on, where all that is between adds what it added in the unpatched run."""
        if here == there:
            return rows
        count = len(rows) // self.paths.base.batch
        return self._copies(there, count) + (rows - self._copies(here, count))

    # --- what it knows -----------------------------------------------------------------------

    @cached_property
    def _carries(self) -> bool:
        """Whether what is added to the stream stays in it as it is."""
        branches = self.paths.branches
        scaled = any(block.out_scale is not None for block in branches.blocks)
        return self.paths.through == "nothing" and branches.is_sum and not scaled

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
        """The unpatched stream before a layer, some times over."""
        return _repeated(self.paths.base.cache[_stream(self.paths.branches, layer)], count)

    def _sending(self, senders: Sequence[Node]) -> Pairs:
        """Hooks that make each sender clean in its own rows, behind the control's."""
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
        """Hooks that hold every branch but the senders' own, which nothing but they can change."""
        branches, count = self.paths.branches, 1 + len(senders)
        own = {branches.out(node) for node in senders}
        held = [one for one in branches.held(senders, self.paths.through) if one not in own]
        cache = self.paths.base.cache
        return [(point, _holding(cache[point], count)) for point in held]

    def _run(self, rows: Tensor, hooks: Pairs, start: int, stop: int) -> Tensor:
        """Rows after some layers."""
        inside = [pair for pair in hooks if layer_of(pair[0]) in range(start, stop)]
        return run_rows(self.paths.base, rows, inside, start, stop)


def _stream(branches: Branches, layer: int) -> str:
    """The point of the stream before a layer; behind the last one there is no layer."""
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

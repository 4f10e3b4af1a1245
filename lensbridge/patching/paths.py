"""Path patching: what one part of the model tells another, and what comes of that alone.

Three runs on the corrupted input, after Wang et al.:

1. what the senders would write: at their own place only, they take their value from the clean run;
2. the frozen run: that is written, every other branch adds what it added in the unpatched run, and
   the receivers' inputs are noted;
3. the receivers get those inputs, everything else runs freely, and the logits are measured.

A head is a sender by its z: its projection, and a norm or multiplier behind attention, are computed
from all heads' z, this one's being the clean one. So no scale is frozen: a norm on the way sees
what it would see if nothing but the path had changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Hook
from lensbridge.nodes.branches import HELD, PARTS, Branches, by_point
from lensbridge.nodes.node import Node, NodeLike, setting, written
from lensbridge.nodes.reachability import Reachability, Through
from lensbridge.sweeps.alignment import check_fit, check_padding
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.metric import MetricFunction, Metrics

Pairs: TypeAlias = list[tuple[Any, Any]]


def path_patch(
    model: HookedModel,
    clean: Any,
    corrupted: Any,
    senders: NodeLike | Iterable[NodeLike],
    receivers: NodeLike | Iterable[NodeLike],
    metric: "MetricFunction | Mapping[str, MetricFunction]",
    *,
    through: Through = "nothing",
) -> Any:
    """Run the corrupted input as if only the receivers had heard the senders' clean values.

    Args:
        model: the model, in eval mode.
        clean: the input that the senders' values come from.
        corrupted: the input that is run, of the same shape. Swap the two to ask what a corrupted
            value breaks instead of what a clean one restores.
        senders: heads ("a3.h5"), whole attentions ("a3"), heads of cross-attention ("c3.h5") or all
            of it ("c3"), mixers ("s3"), MLPs ("m3"), neurons ("m3.n17"), the embedding ("input");
            "@7" behind one: at position 7 alone; "encoder." before it: in that stack.
        receivers: queries, keys and values of heads ("a5.h1<q>", "c5.h1<k>"; a key or value has the
            number of its key/value head), what attentions ("a5") or MLPs ("m5") read, or "logits";
            also at one position ("a5.h1<q>@7"). What an encoder sends arrives at the keys and
            values of cross-attention.
        metric: maps logits to anything; or several by name.
        through: what may carry the senders' change on to the receivers: "nothing" patches direct
            paths; "mlps" lets MLPs on the way pass it on, as in the paper; "everything" holds
            nothing, so that direct and indirect paths count.

    Returns:
        What the metric gives; a dictionary for several.

    Raises:
        InputError: a node that this model lacks, inputs of different length, receivers that lie
            before all senders, or a model in training mode.

    Source: Wang et al. 2022, Interpretability in the Wild, appendix B.
    """
    metrics = Metrics.of(metric, "scalar")
    given, wanted = nodes(model, senders), nodes(model, receivers)
    paths = Paths.prepare(model, clean, corrupted, given, wanted, through)
    metrics.try_on(paths.base.logits)
    logits = paths.patched(wanted)
    found = {name: metrics.called(name, logits) for name in metrics.names}
    return found if metrics.named else found["metric"]


def nodes(model: HookedModel, given: NodeLike | Iterable[NodeLike]) -> list[Node]:
    """Nodes from one or several, as text or not."""
    several = [given] if isinstance(given, str | Node) else list(given)
    if not several:
        raise InputError("There is no node: a path has a sender and a receiver at least.")
    normal = Branches(model).normal
    return list(dict.fromkeys(normal(Node.of(one)) for one in several))


@dataclass(frozen=True)
class Paths:
    """Senders whose clean values are to be sent somewhere, and the run that they are sent into.

    Args:
        base: the unpatched run, with what every branch added.
        senders: who sends, and at which point.
        clean: the senders' values in the clean run.
        through: what may carry them on.
    """

    base: BaseRun
    branches: Branches
    senders: Mapping[Node, str]
    clean: Mapping[str, Tensor] = field(repr=False)
    through: Through = "nothing"

    @classmethod
    def prepare(
        cls,
        model: HookedModel,
        clean: Any,
        corrupted: Any,
        senders: Sequence[Node],
        receivers: Sequence[Node],
        through: Through,
        more: Iterable[str] = (),
    ) -> "Paths":
        """Check the nodes and run both inputs; `more` is kept of the corrupted run too.

        Raises:
            InputError: as `path_patch`.
        """
        branches, points = _placed(model, senders, through)
        ends = check_receivers(branches, senders, receivers, through)
        kept = list(points.values())
        source = BaseRun.run(model, clean, kept)
        held = branches.held(senders, through)
        needed = [*held, *kept, *ends.values(), *branches.last(receivers), *more]
        base = BaseRun.run(model, corrupted, needed)
        check_padding(base, source.cache)
        for point in kept:
            check_fit(base, point, source.cache[point], source.cache.tokens)
        check_positions(base, {**points, **ends})
        values = {point: source.cache[point] for point in kept}
        return cls(base, branches, points, values, through)

    @classmethod
    def from_values(
        cls,
        model: HookedModel,
        clean: Mapping[str, Tensor],
        corrupted: Any,
        senders: Sequence[Node],
        more: Iterable[str] = (),
    ) -> "Paths":
        """Direct paths from values that a cache holds; `more` is kept of the unpatched run too."""
        branches, points = _placed(model, senders, "nothing")
        kept = list(points.values())
        held = branches.held(senders, "nothing")
        base = BaseRun.run(model, corrupted, [*held, *kept, *more])
        return cls(base, branches, points, {point: clean[point] for point in kept})

    # --- the runs ----------------------------------------------------------------------------

    def patched(self, receivers: Sequence[Node]) -> Tensor:
        """Logits of the third run.

        Args:
            receivers: those that this was prepared for.
        """
        ends = {node: self.branches.read(node) for node in receivers if node.kind != "logits"}
        if not ends:
            return self._frozen([])[0]
        last = self.branches.last(receivers)
        _, noted = self._frozen([*dict.fromkeys(ends.values()), *last])
        hooks = [(point, setting(noted[point], own)) for point, own in by_point(ends).items()]
        hooks += [(point, _adding(noted[point] - self.base.cache[point])) for point in last]
        return self._run(hooks)

    def notes(self, points: Sequence[str]) -> dict[str, Tensor]:
        """What these points hold in the frozen run."""
        return self._frozen(points)[1]

    def _run(self, hooks: Pairs) -> Tensor:
        with torch.no_grad():
            return self.base.model.run_with_hooks(self.base.input, hooks)

    def _frozen(self, points: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the second run, and what the points hold in it."""
        noted: dict[str, Tensor] = {}
        reading = [(point, _noting(noted)) for point in points]
        if self.through == "everything":
            return self._run([*self._sending(self.senders), *reading]), noted
        held = self.branches.held(list(self.senders), self.through)
        values = {point: self.base.cache[point] for point in held}
        values.update(self._sent())
        freezing = [(point, setting(value)) for point, value in values.items()]
        return self._run([*freezing, *reading]), noted

    def _sent(self) -> dict[str, Tensor]:
        """What the branches of the senders add when the senders alone are clean."""
        parts = {node: point for node, point in self.senders.items() if node.kind in PARTS}
        whole = {node: point for node, point in self.senders.items() if node.kind not in PARTS}
        values = {
            point: written(self.base.cache[point].clone(), self.clean[point], own)
            for point, own in by_point(whole).items()
        }
        if not parts:
            return values
        noted: dict[str, Tensor] = {}
        outs = dict.fromkeys(self.branches.out(node) for node in parts)
        restoring = [(out, _noting(noted, self.base.cache[out])) for out in outs]
        self._run([*self._sending(parts), *restoring])
        return {**noted, **values}

    def _sending(self, senders: Mapping[Node, str]) -> Pairs:
        """Hooks that put clean values in the senders' places."""
        return [
            (point, setting(self.clean[point], own)) for point, own in by_point(senders).items()
        ]


def _placed(
    model: HookedModel, senders: Sequence[Node], through: Through
) -> tuple[Branches, dict[Node, str]]:
    if through not in HELD:
        raise InputError(f"through is one of {', '.join(map(repr, HELD))}, not {through!r}.")
    branches = Branches(model)
    points = {node: branches.written(node) for node in senders}
    for node in senders:
        whole = replace(node.anywhere, kind=PARTS.get(node.kind, "logits"), index=None)
        both = [one for one in points if one.anywhere == whole]
        if both:
            raise InputError(f"{node} is part of {both[0]}, which sends too: name one of them.")
    return branches, points


def check_receivers(
    branches: Branches, senders: Sequence[Node], receivers: Sequence[Node], through: Through
) -> dict[Node, str]:
    """The points of the receivers, the logits apart.

    Raises:
        InputError: one that no sender reaches, or the logits and others at once where the stream is
            not a sum.
    """
    ends = {node: branches.read(node) for node in receivers if node.kind != "logits"}
    if ends and len(ends) < len(receivers) and not branches.is_sum:
        raise InputError(
            "The stream of this model goes through norms, so what reaches the logits directly "
            "cannot be added to what the other receivers bring about. Patch them one by one."
        )
    reach = Reachability(branches.model, through)
    for receiver in receivers:
        if receiver.kind == "logits" and receiver.position is not None:
            raise InputError(f"{receiver}: a metric reads the logits of every position.")
        if not any(reach.reaches(sender, receiver) for sender in senders):
            raise InputError(reach.why_not(senders, receiver))
    return ends


def check_positions(base: BaseRun, points: Mapping[Node, str]) -> None:
    """Refuse positions that the input lacks.

    Raises:
        InputError: with how many there are.
    """
    for node, point in points.items():
        count = base.shape(point)[1]
        if node.position is not None and not node.position < count:
            raise InputError(f"{node}: the input has {count} positions.")


def _adding(delta: Tensor) -> Any:
    def add(activation: Tensor, hook: Hook) -> Tensor:
        return activation + delta

    return add


def _noting(noted: dict[str, Tensor], restore: Tensor | None = None) -> Any:
    """A hook that notes a value, and puts another in its place if there is one."""

    def note(activation: Tensor, hook: Hook) -> Tensor | None:
        noted[hook.name] = activation.clone()
        return restore

    return note

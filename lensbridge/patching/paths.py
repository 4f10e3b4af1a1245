"""Path patching: the effect that some components (senders) have on others (receivers) directly.

Three runs on the corrupted input, after Wang et al.:

1. what the senders' branches add if the senders alone have their values of the clean run;
2. the frozen run: these branches add that, every other branch adds what it added in the unpatched
   run, and the receivers' inputs are noted;
3. the receivers get those inputs, everything else runs freely, and the logits are measured.

The value of a sending head is its z. The projection, and a norm or multiplier after attention, are
computed from the z of all heads, of which this one is clean. So no scale is frozen: a norm on the
path gets the input that it would have if nothing but the path had changed.
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
    """Run the corrupted input with the senders' clean values on the paths to the receivers alone.

    Args:
        model: the model, in eval mode.
        clean: the input that the senders' values come from.
        corrupted: the input that is run, of the same shape. Swap the two to ask what a corrupted
            value breaks instead of what a clean one restores.
        senders: heads ("a3.h5"), whole attentions ("a3"), heads of cross-attention ("c3.h5") or all
            of it ("c3"), mixers ("s3"), MLPs ("m3"), neurons ("m3.n17"), the embedding ("input").
            With "@7" after a node only its position 7 counts; "encoder." before it names the stack.
        receivers: query, key and value inputs of heads ("a5.h1<q>", "c5.h1<k>"; keys and values by
            the number of the key/value head), inputs of attentions ("a5") or MLPs ("m5"), or
            "logits"; also at one position ("a5.h1<q>@7"). Paths from an encoder end at the keys and
            values of cross-attention.
        metric: maps logits to anything; or several by name.
        through: what may pass the senders' change on to the receivers: "nothing" patches direct
            paths; "mlps" lets MLPs on the path pass it on, as in the paper; "everything" holds
            nothing, so that direct and indirect paths count.

    Returns:
        What the metric gives; a dictionary for several.

    Raises:
        InputError: the model lacks a node, the inputs differ in length, no path leads from a sender
            to a receiver, or the model is in training mode.

    Source: Wang et al. 2022, Interpretability in the Wild, appendix B.
    """
    metrics = Metrics.of(metric, "scalar", model, corrupted)
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
        raise InputError("No node was given: a path needs at least one sender and one receiver.")
    normal = Branches(model).normal
    return list(dict.fromkeys(normal(Node.of(node)) for node in several))


@dataclass(frozen=True)
class Paths:
    """Senders with their clean values, and the run that these are patched into.

    Args:
        base: the unpatched run, with what every branch added.
        branches: of the model.
        senders: the nodes that paths start from, and their points.
        clean: the senders' values in the clean run.
        through: what may pass the change on.
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
        """Check the nodes and run both inputs; the corrupted run also keeps the points of `more`.

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
        """Direct paths from cached values; the unpatched run also keeps the points of `more`."""
        branches, points = _placed(model, senders, "nothing")
        kept = list(points.values())
        held = branches.held(senders, "nothing")
        base = BaseRun.run(model, corrupted, [*held, *kept, *more])
        return cls(base, branches, points, {point: clean[point] for point in kept})

    # --- the runs ----------------------------------------------------------------------------

    def patched(self, receivers: Sequence[Node]) -> Tensor:
        """Logits of the third run.

        Args:
            receivers: the ones that were passed to `prepare`.
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
        """The values of these points in the frozen run."""
        return self._frozen(points)[1]

    def _run(self, hooks: Pairs) -> Tensor:
        with torch.no_grad():
            return self.base.model.run_with_hooks(self.base.input, hooks)

    def _frozen(self, points: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the second run, and the values of some points in it."""
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
        """What the senders' branches add when the senders alone are clean."""
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
        """Hooks that write the senders' clean values."""
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
        both = [sender for sender in points if sender.anywhere == whole]
        if both:
            raise InputError(f"{node} is part of {both[0]}, also a sender. Name one of the two.")
    return branches, points


def check_receivers(
    branches: Branches, senders: Sequence[Node], receivers: Sequence[Node], through: Through
) -> dict[Node, str]:
    """The points of the receivers, the logits apart.

    Raises:
        InputError: no sender has a path to one of them; or they are the logits and others, in a
            model whose stream is not a sum.
    """
    ends = {node: branches.read(node) for node in receivers if node.kind != "logits"}
    if ends and len(ends) < len(receivers) and not branches.is_sum:
        raise InputError(
            "The residual stream of this model goes through norms, so the direct effect on the "
            "logits and the effect of the other receivers do not add up. Patch the receivers one "
            "by one."
        )
    reach = Reachability(branches.model, through)
    for receiver in receivers:
        if receiver.kind == "logits" and receiver.position is not None:
            raise InputError(
                f"{receiver}: a metric reads the logits of every position. Write 'logits'."
            )
        if not any(reach.reaches(sender, receiver) for sender in senders):
            raise InputError(reach.why_not(senders, receiver))
    return ends


def check_positions(base: BaseRun, points: Mapping[Node, str]) -> None:
    """Refuse positions that the input lacks.

    Raises:
        InputError: with the number of positions.
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
    """A hook that notes a value, and replaces it if `restore` is given."""

    def note(activation: Tensor, hook: Hook) -> Tensor | None:
        noted[hook.name] = activation.clone()
        return restore

    return note

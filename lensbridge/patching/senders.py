"""Senders: path patching from each head, attention or MLP of a model to the same receivers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import prod
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.nodes.node import Node, NodeLike
from lensbridge.nodes.reachability import Reachability, Through
from lensbridge.nodes.units import UNITS, enumerate_nodes, points_of, stack_of
from lensbridge.patching.activation import Prepared, assemble
from lensbridge.patching.broadcast import Broadcast
from lensbridge.patching.paths import Paths, nodes
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.memory import batch_tokens
from lensbridge.sweeps.metric import MetricFunction, Metrics, Reduce
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.reads import positions_read
from lensbridge.sweeps.rows import started_late
from lensbridge.sweeps.running import Measured, why_single

SenderUnit: TypeAlias = Literal["head", "cross_head", "attn", "cross", "mixer", "mlp", "neuron"]
"""What is a sender: heads, whole branches, or neurons."""

_UNITS = ("head", "cross_head", "attn", "cross", "mixer", "mlp", "neuron")


def sweep_senders(
    model: HookedModel,
    clean: Any,
    corrupted: Any,
    receivers: NodeLike | Iterable[NodeLike],
    metric: "MetricFunction | Mapping[str, MetricFunction]",
    *,
    unit: SenderUnit = "head",
    stack: str | None = None,
    through: Through = "nothing",
    reduce: Reduce = "scalar",
    baseline: bool = False,
    exact: bool | None = None,
    max_batch_tokens: int | None = None,
    verbose: bool = False,
) -> Any:
    """`path_patch` from each head, or other unit, on its own to the same receivers.

    Args:
        model: the model, in eval mode.
        clean: the input that the senders' values come from.
        corrupted: the input that is run, of the same shape.
        receivers: as for `path_patch`.
        metric: maps logits to a number, or to one for each example; or several by name.
        unit: the kind of sender: "head", "cross_head", "attn", "cross", "mixer", "mlp" or "neuron".
        stack: prefix of the senders' stack ("encoder"); None: the main one.
        through: as for `path_patch`.
        reduce: as for `generic_activation_patch`.
        baseline: also keep the metric of the unpatched run.
        exact: True makes the runs of `path_patch` for each sender; None runs the senders of a layer
            in batches where the model allows it; False raises where it does not.
        max_batch_tokens: how many positions such a batch may have; None: as many as the free
            memory allows.
        verbose: show a progress bar.

    Returns:
        A tensor; a `PatchingResult` for named metrics, `reduce="none"`, `baseline=True`, or after
        an interrupt.

    Shapes: `[layer, head]`, `[layer, neuron]` or `[layer]`; NaN where no path leads from a sender
        to a receiver.

    Raises:
        InputError: as for `path_patch`, or the metric does not fit.
        AbsentPointError: no layer has the unit.

    Example:
        >>> import lensbridge
        >>> from lensbridge.patching import sweep_senders
        >>> model = lensbridge.load("demo")
        >>> towers = (f"The {name} Tower is in the city of" for name in ("Eiffel", "Galata"))
        >>> metric = lambda logits: logits[0, -1, model.to_single_token(" Paris")]
        >>> sweep_senders(model, *towers, "logits", metric, unit="mlp").shape
        torch.Size([4])
    """
    metrics, wanted = Metrics.of(metric, reduce, model, corrupted), nodes(model, receivers)
    senders = _senders(model, unit, stack, wanted, through)
    more = Broadcast.streams(model, senders, wanted)
    paths = Paths.prepare(model, clean, corrupted, senders, wanted, through, more)
    options = SweepOptions(exact, max_batch_tokens, verbose)
    most = batch_tokens(paths.base, max_batch_tokens)
    run = Senders(paths, senders, wanted, metrics, options, most).run()
    prepared = Prepared(paths.base, _grid(model, unit, stack, senders), [])
    result = assemble(prepared, metrics, run, baseline)
    wants_result = metrics.named or reduce == "none" or baseline or run.partial
    return result if wants_result else result.values


def _senders(
    model: HookedModel,
    unit: str,
    stack: str | None,
    receivers: Sequence[Node],
    through: Through,
) -> list[Node]:
    """The nodes of a unit that have a path to some receiver.

    Raises:
        InputError: an unknown unit, or none of its nodes has such a path.
        AbsentPointError: no layer has the unit.
    """
    if unit not in _UNITS:
        raise InputError(
            f"unit is one of {', '.join(_UNITS)}, not {unit!r}. For the embedding call "
            "path_patch(model, clean, corrupted, 'input', ...)."
        )
    points_of(model, stack_of(model, stack), unit)
    reach, units = Reachability(model, through), enumerate_nodes(model, [unit], stack=stack)
    senders = [node for node in units if any(reach.reaches(node, end) for end in receivers)]
    if not senders:
        raise InputError(reach.why_not(units[:1], receivers[0]))
    return senders


def _grid(model: HookedModel, unit: str, stack: str | None, senders: Sequence[Node]) -> Grid:
    """The senders by their numbers, on axes with an entry for each layer."""
    layers = range(len(stack_of(model, stack).blocks))
    index = UNITS[unit].index
    if index is None:
        return Grid(("layer",), tuple((n.layer or 0,) for n in senders), (tuple(layers),))
    rows = tuple((n.layer or 0, n.index or 0) for n in senders)
    width = 1 + max(n.index or 0 for n in enumerate_nodes(model, [unit], stack=stack))
    return Grid(("layer", index), rows, (tuple(layers), tuple(range(width))))


@dataclass(frozen=True)
class Senders:
    """Senders that are run one by one or in batches, and measured.

    Args:
        paths: the paths of all senders.
        senders: in the order of the values.
        receivers: where the paths end.
        metrics: what is measured.
        options: how they are run.
        most: positions in a batch.
    """

    paths: Paths
    senders: Sequence[Node]
    receivers: Sequence[Node]
    metrics: Metrics
    options: SweepOptions
    most: int

    def run(self) -> Measured:
        """Measure every sender; an interrupt leaves NaN for those that did not run.

        Raises:
            InputError: the metric does not fit, or `exact=False` and no batch can be made.
        """
        baseline = self.metrics.baseline(self.paths.base.logits)
        shape = (baseline.shape[0], len(self.senders), *baseline.shape[1:])
        run = Measured(baseline.new_full(shape, torch.nan), baseline)
        bar = tqdm(total=len(self.senders), disable=not self.options.verbose, desc="path patching")
        try:
            with torch.no_grad(), bar:
                for i, values in self._measured(run.reasons):
                    run.values[:, i] = values
                    bar.update()
        except KeyboardInterrupt:
            run.partial = True
        return run

    def _measured(self, reasons: list[str]) -> Iterator[tuple[int, Tensor]]:
        why = "asked for" if self.options.exact else self._why_single()
        if why:
            yield from self._single(range(len(self.senders)), why, reasons)
            return
        reads = positions_read(self.metrics, self.paths.base.logits)
        broadcast = Broadcast(self.paths, self.receivers, reads)
        for some in self._groups():
            nodes = [self.senders[i] for i in some]
            found = started_late(nodes[0].layer or 0, partial(broadcast.logits, nodes))
            if isinstance(found, str):
                yield from self._single(some, found, reasons)
                continue
            for i, logits in zip(some, found, strict=True):
                values = self.metrics.measure(self._whole(logits, reads))
                lacks = values.isnan().any() and len(reads) < self.paths.base.logits.shape[1]
                yield i, self._alone(i) if lacks else values

    def _whole(self, part: Tensor, reads: Sequence[int]) -> Tensor:
        logits = torch.full_like(self.paths.base.logits, torch.nan)
        logits[:, list(reads)] = part
        return logits

    def _single(
        self, some: Iterable[int], why: str, reasons: list[str]
    ) -> Iterator[tuple[int, Tensor]]:
        if self.options.exact is False:
            raise InputError(f"These senders cannot be run in batches: {why}. Pass exact=True.")
        reasons.append(why)
        yield from ((i, self._alone(i)) for i in some)

    def _alone(self, i: int) -> Tensor:
        """One sender, by the runs that define path patching."""
        node = self.senders[i]
        one = replace(self.paths, senders={node: self.paths.senders[node]})
        return self.metrics.measure(one.patched(self.receivers))

    def _why_single(self) -> str | None:
        base, branches = self.paths.base, self.paths.branches
        ends = [branches.read(node) for node in self.receivers if node.kind != "logits"]
        points = dict.fromkeys([*self.paths.senders.values(), *ends])
        why = (why_single(base, point) for point in points)
        if self.most < 2 * prod(base.logits.shape[:2]):
            return f"max_batch_tokens={self.most} has room for one run at a time"
        return next((one for one in why if one is not None), None)

    def _groups(self) -> Iterator[list[int]]:
        """Senders of one layer, as many as a batch holds besides its control row."""
        size = self.most // prod(self.paths.base.logits.shape[:2]) - 1
        for _, found in groupby(range(len(self.senders)), key=lambda i: self.senders[i].layer):
            own = list(found)
            yield from (own[i : i + size] for i in range(0, len(own), size))

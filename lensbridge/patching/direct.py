"""Direct paths from one head to every later head: a sweep that the field has published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import AbsentPointError, InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.nodes.branches import Branches
from lensbridge.nodes.node import Node
from lensbridge.nodes.units import point_of
from lensbridge.patching.activation import Prepared, assemble
from lensbridge.patching.paths import Paths
from lensbridge.sweeps.alignment import check_fit, check_padding, clean_value, tokens_of
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.edit import IndexedEdit
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.measuring import measure
from lensbridge.sweeps.metric import MetricFunction, Metrics
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.result import PatchingResult
from lensbridge.sweeps.running import entrances

Component: TypeAlias = Literal["q", "k", "v"]
"""Which input of the receiving heads is patched."""


def get_act_patch_direct_path(
    model: HookedModel,
    corrupted_tokens: Any,
    clean_cache: Mapping[str, Tensor],
    corrupted_cache: Mapping[str, Tensor],
    patching_metric: "MetricFunction | Mapping[str, MetricFunction]",
    src_layer: int,
    src_head: int,
    component: Component = "q",
    verbose: bool = False,
    *,
    exact: bool | None = None,
) -> Any:
    """Patch one head's clean output into the query, key or value input of each later head alone.

    Args:
        model: the model, in eval mode.
        corrupted_tokens: the input that is run.
        clean_cache: cache of the clean run, with the head's z.
        corrupted_cache: cache of the run on `corrupted_tokens`, with the head's z. It is checked
            that it is of this run.
        patching_metric: maps logits to a number; or several by name.
        src_layer: layer of the sending head.
        src_head: the sending head.
        component: which input of the receiving heads.
        verbose: show a progress bar.
        exact: as in `generic_activation_patch`.

    Shapes: `[layer, head]`, for keys and values `[layer, kv_head]`; NaN where there is no such
        path: up to the sender's own layer, and in layers without attention. After an interrupt a
        `PatchingResult` of that shape; for named metrics one with a first axis for them.

    Raises:
        InputError: the model lacks the head, or a cache or metric does not fit.

    Source: the signature is that of TransformerLens's `get_act_patch_direct_path`.
    """
    caches = Caches(corrupted_tokens, clean_cache, corrupted_cache)
    options = SweepOptions(exact, verbose=verbose)
    sources = Sources(model, caches, patching_metric, component, options)
    source = Node("head", src_layer, src_head)
    result = sources.patched(sources.paths([source]), source)
    return result if result.partial or result.has_metric_axis else result.values


def get_act_patch_direct_path_all_sources(
    model: HookedModel,
    corrupted_tokens: Any,
    clean_cache: Mapping[str, Tensor],
    corrupted_cache: Mapping[str, Tensor],
    patching_metric: "MetricFunction | Mapping[str, MetricFunction]",
    component: Component = "q",
    verbose: bool = False,
    *,
    exact: bool | None = None,
) -> Any:
    """`get_act_patch_direct_path` from every head of the model.

    Args:
        model: the model, in eval mode.
        corrupted_tokens: the input that is run.
        clean_cache: cache of the clean run, with every z.
        corrupted_cache: cache of the run on `corrupted_tokens`, with every z.
        patching_metric: maps logits to a number; or several by name.
        component: which input of the receiving heads.
        verbose: show progress bars.
        exact: as in `generic_activation_patch`.

    Shapes: `[src_layer, src_head, layer, head]`; for keys and values the last axis counts
        key/value heads. NaN where there is no such path. After an interrupt a `PatchingResult` of
        that shape; for named metrics one with a first axis for them.

    Raises:
        InputError: as `get_act_patch_direct_path`.
    """
    caches = Caches(corrupted_tokens, clean_cache, corrupted_cache)
    options = SweepOptions(exact, verbose=verbose)
    sources = Sources(model, caches, patching_metric, component, options)
    senders = sources.senders()
    paths, found = sources.paths(senders), dict[Node, PatchingResult]()
    for source in senders:
        found[source] = sources.patched(paths, source)
        if found[source].partial:
            break
    result = _stacked(found, sources)
    return result if result.partial or result.has_metric_axis else result.values


@dataclass(frozen=True)
class Caches:
    """The input and the caches that a user passes.

    Args:
        corrupted: the input that is run.
        clean: what heads wrote in the clean run.
        theirs: what heads wrote in the corrupted run.
    """

    corrupted: Any
    clean: Mapping[str, Tensor] = field(repr=False)
    theirs: Mapping[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Sources:
    """Direct paths of one kind in one corrupted run, from the heads that can be senders."""

    model: HookedModel
    caches: Caches
    metric: "MetricFunction | Mapping[str, MetricFunction]"
    component: Component
    options: SweepOptions

    @cached_property
    def metrics(self) -> Metrics:
        """The metric, checked."""
        return Metrics.of(self.metric, "scalar", self.model, self.caches.corrupted)

    @cached_property
    def branches(self) -> Branches:
        """The branches of the model."""
        return Branches(self.model)

    @cached_property
    def receivers(self) -> dict[Node, str]:
        """Every head's query, key or value input, and its point.

        Raises:
            InputError: an unknown component.
            AbsentPointError: no layer has attention.
        """
        if self.component not in ("q", "k", "v"):
            raise InputError(f"component is 'q', 'k' or 'v', not {self.component!r}.")
        found = {}
        for layer, block in enumerate(self.branches.blocks):
            attn = block.attn
            if attn is None or (self.component != "q" and attn.k is None):  # another layer's keys
                continue
            for head in range(attn.n_heads if self.component == "q" else attn.n_kv):
                node = Node("head", layer, head, self.component)
                found[node] = self.branches.read(node)
        if not found:
            raise AbsentPointError(
                "This model has no attention with queries, keys and values that are described."
            )
        return found

    def senders(self) -> list[Node]:
        """The heads that have a receiver in a later layer."""
        last = max(map(_layer, self.receivers))
        blocks = enumerate(self.branches.blocks[:last])
        return [
            Node("head", i, head) for i, b in blocks if b.attn for head in range(b.attn.n_heads)
        ]

    def paths(self, senders: Sequence[Node]) -> Paths:
        """Both runs; the caches are checked against them.

        Raises:
            InputError: the model lacks a head, no later layer can receive, or caches do not fit.
            NotCachedError: a cache lacks what a head wrote.
        """
        points = dict.fromkeys(self.branches.written(node) for node in senders)
        first = min(map(_layer, senders))
        kept = list(dict.fromkeys(p for node, p in self.receivers.items() if _layer(node) > first))
        if not kept:
            raise InputError(
                f"{senders[0]}: no later layer has attention, so no path starts there."
            )
        heads = dict.fromkeys(point_of(self.model, node) for node in senders)
        clean = {point: self._clean(point) for point in points}
        theirs = {z: clean_value(self.caches.theirs, z) for z in heads}
        starts = entrances(self.model, kept)
        paths = Paths.from_values(
            self.model, clean, self.caches.corrupted, senders, [*heads, *kept, *starts]
        )
        check_padding(paths.base, self.caches.clean)
        for point in points:
            check_fit(paths.base, point, clean[point], tokens_of(self.caches.clean))
        for z, own in theirs.items():
            message = f"{z} in corrupted_cache is not that of a run on corrupted_tokens."
            _check_same_run(paths.base.cache[z], own, message)
        return paths

    def _clean(self, point: str) -> Tensor:
        """What heads wrote in the clean run. If it is gated, the clean input is run again."""
        clean = self.caches.clean
        again = isinstance(clean, ActivationCache) and clean.tokens is not None
        if point in clean or not again or not point.endswith("hook_result"):
            return clean_value(clean, point)
        z = point.replace("hook_result", "hook_z")
        assert isinstance(clean, ActivationCache)
        mask = {} if clean.attention_mask is None else {"attention_mask": clean.attention_mask}
        run = BaseRun.run(self.model, {"input_ids": clean.tokens, **mask}, [z, point])
        message = f"The clean cache lacks {point}, and its run cannot be repeated from it."
        _check_same_run(run.cache[z], clean_value(clean, z), f"{message} Keep {point} in it.")
        return run.cache[point]

    def patched(self, paths: Paths, source: Node) -> PatchingResult:
        """Patch one head's clean output into the input of each later head alone."""
        layer = _layer(source)
        later = {node: point for node, point in self.receivers.items() if _layer(node) > layer}
        one = replace(paths, senders={source: paths.senders[source]})
        noted = one.notes(list(dict.fromkeys(later.values())))
        cells = [_cell(noted[point], node, point) for node, point in later.items()]
        rows = tuple((_layer(node), node.index or 0) for node in later)
        heads = 1 + max(node.index or 0 for node in self.receivers)
        grid = Grid(("layer", "head"), rows, (tuple(range(self.n_layers)), tuple(range(heads))))
        run = measure(paths.base, cells, self.metrics, self.options)
        return assemble(Prepared(paths.base, grid, cells), self.metrics, run, baseline=False)

    @property
    def n_layers(self) -> int:
        """Number of layers of the main stack."""
        return len(self.branches.blocks)


def _stacked(found: Mapping[Node, PatchingResult], sources: Sources) -> PatchingResult:
    """The results of several senders, with two new axes for these in front."""
    results = list(found.values())
    lead = int(results[0].has_metric_axis)
    width = 1 + max(node.index or 0 for node in sources.senders())
    sizes = (sources.n_layers, width, *results[0].values.shape[lead:])
    values = results[0].values.new_full((*results[0].values.shape[:lead], *sizes), torch.nan)
    rows = []
    for node, result in found.items():
        sender = (_layer(node), node.index or 0)
        place: Any = (..., *sender, slice(None), slice(None))
        values[place] = result.values
        rows += [(*sender, *row) for row in result.grid.rows]
    names = ("src_layer", "src_head", "layer", "head")
    return replace(
        results[-1],
        values=values,
        grid=Grid(names, tuple(rows), tuple(tuple(range(size)) for size in sizes)),
        engine="; ".join(dict.fromkeys(result.engine for result in results)),
    )


def _layer(node: Node) -> int:
    assert node.layer is not None
    return node.layer


def _cell(noted: Tensor, node: Node, point: str) -> IndexedEdit:
    return IndexedEdit(point, node.place, noted[node.place])


def _check_same_run(z: Tensor, theirs: Tensor, message: str) -> None:
    """Refuse a cache of another input than the one that is run."""
    close = theirs.shape == z.shape and torch.allclose(theirs.to(z), z, rtol=1e-2, atol=1e-2)
    if not close:
        raise InputError(message)

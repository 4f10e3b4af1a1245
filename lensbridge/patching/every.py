"""Several patching functions at once; the first axis of the result counts them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import AbsentPointError
from lensbridge.hooked_model import HookedModel
from lensbridge.patching import published
from lensbridge.patching.signatures import PatchingFunction, StackedPatchingFunction
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.metric import MetricFunction
from lensbridge.sweeps.result import PatchingResult

_RENAMED = {"head_index": "head", "dest_pos": "pos"}

_ARGUMENTS = """

    Args:
        model: the model, in eval mode.
        corrupted_tokens: the input that is run, as for `forward`.
        clean_cache: activations of the clean run.
        metric: maps logits to a number, or to one for each example; or several by name.
        options: the keywords of `generic_activation_patch`.

    Shapes: """


def _every(
    name: str,
    functions: Mapping[str, PatchingFunction],
    axes: tuple[str, ...],
    what: str,
    shapes: str,
) -> StackedPatchingFunction:
    """A function that runs several and stacks their results on a first axis, in their order."""

    def patch(
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Mapping[str, Tensor],
        metric: "MetricFunction | Mapping[str, MetricFunction]",
        **options: Any,
    ) -> Any:
        several = functions.values()
        sweeps = _run(several, model, corrupted_tokens, clean_cache, metric, options)
        return _stacked(sweeps, axes, list(functions), options)

    patch.__name__ = patch.__qualname__ = name
    patch.__doc__ = f"{what}{_ARGUMENTS}{shapes}\n"
    return patch


get_act_patch_attn_head_all_pos_every = _every(
    "get_act_patch_attn_head_all_pos_every",
    {
        "out": published.get_act_patch_attn_head_out_all_pos,
        "q": published.get_act_patch_attn_head_q_all_pos,
        "k": published.get_act_patch_attn_head_k_all_pos,
        "v": published.get_act_patch_attn_head_v_all_pos,
        "pattern": published.get_act_patch_attn_head_pattern_all_pos,
    },
    ("layer", "head"),
    """Patch output, query, key, value and pattern of each head at all positions.

    Keys and values have an entry for each key/value head. If there are fewer of these than heads,
    the other entries are NaN.""",
    "`[5, layer, head]`; layers without attention are left out.",
)
get_act_patch_attn_head_by_pos_every = _every(
    "get_act_patch_attn_head_by_pos_every",
    {
        "out": published.get_act_patch_attn_head_out_by_pos,
        "q": published.get_act_patch_attn_head_q_by_pos,
        "k": published.get_act_patch_attn_head_k_by_pos,
        "v": published.get_act_patch_attn_head_v_by_pos,
        "pattern": published.get_act_patch_attn_head_pattern_by_pos,
    },
    ("layer", "pos", "head"),
    """Patch output, query, key, value and pattern of each head, by (destination) position.

    Keys and values have an entry for each key/value head. If there are fewer of these than heads,
    the other entries are NaN.""",
    "`[5, layer, pos, head]`; layers without attention are left out.",
)
get_act_patch_block_every = _every(
    "get_act_patch_block_every",
    {
        "resid_pre": published.get_act_patch_resid_pre,
        "attn_out": published.get_act_patch_attn_out,
        "mlp_out": published.get_act_patch_mlp_out,
    },
    ("layer", "pos"),
    """Patch the stream at the start of each layer, what attention adds and what the MLP adds.

    Layers without attention or without an MLP (hybrids, state-space models) have NaN there.""",
    "`[3, layer, pos]`",
)


def _run(
    functions: Iterable[PatchingFunction],
    model: HookedModel,
    corrupted: Any,
    clean: Mapping[str, Tensor],
    metric: Any,
    options: Mapping[str, Any],
) -> dict[int, PatchingResult]:
    """The results by number, up to a sweep that was interrupted. Sweeps over an activation that no
    layer has are left out.

    Raises:
        AbsentPointError: no layer has any of the activations.
    """
    found: dict[int, PatchingResult] = {}
    missing: AbsentPointError | None = None
    for kind, function in enumerate(functions):
        try:
            result = function(model, corrupted, clean, metric, **{**options, "baseline": True})
        except AbsentPointError as error:
            missing = missing or error
            continue
        found[kind] = result
        if result.partial:
            break
    if missing is not None and not found:
        raise missing
    return found


def _stacked(
    sweeps: Mapping[int, PatchingResult],
    axes: tuple[str, ...],
    types: list[str],
    options: Mapping[str, Any],
) -> Any:
    """One result of several, with a new first axis; a tensor where a single sweep gives one."""
    several = list(sweeps.values())
    first, lead = several[0], int(several[0].has_metric_axis)
    found = {kind: _laid_out(sweep.grid, axes) for kind, sweep in sweeps.items()}
    along = [grid.axis_values or () for grid in found.values()]
    values = [sorted({v for one in along for v in one[i]}) for i in range(len(axes))]
    whole = Grid.over(("patch_type", *axes), [range(len(types)), *values])
    rows = [(kind, *row) for kind, grid in found.items() for row in grid.rows]
    result = PatchingResult(
        values=_values(sweeps, found, whole),
        grid=Grid(whole.axis_names, tuple(rows), whole.axis_values),
        metric_names=first.metric_names,
        reduced=first.reduced,
        baseline=first.baseline if options.get("baseline") else None,
        has_metric_axis=first.has_metric_axis,
        patch_type_names=types,
        partial=several[-1].partial,
        engine="; ".join(dict.fromkeys(sweep.engine for sweep in several)),
        positions=first.positions,
    )
    wants_result = lead or options.get("baseline") or options.get("reduce") == "none"
    return result if wants_result or result.partial else result.values


def _values(sweeps: Mapping[int, PatchingResult], found: Mapping[int, Grid], whole: Grid) -> Tensor:
    """Every value at its place in the stack, and NaN elsewhere."""
    first = next(iter(sweeps.values()))
    lead = int(first.has_metric_axis)
    before, after = first.values.shape[:lead], first.values.shape[lead + len(whole.shape) - 1 :]
    values = first.values.new_full((*before, *whole.shape, *after), torch.nan)
    metrics = (slice(None),) * lead
    for kind, sweep in sweeps.items():
        for theirs, row in zip(sweep.grid.rows, found[kind].rows, strict=True):
            come: Any = (*metrics, *sweep.grid.place(theirs))
            to: Any = (*metrics, *whole.place((kind, *row)))
            values[to] = sweep.values[come]
    return values


def _laid_out(grid: Grid, axes: Sequence[str]) -> Grid:
    """A grid whose axes have the names and the order of those of the stack."""
    names = [_RENAMED.get(name, name) for name in grid.axis_names]
    order = [names.index(axis) for axis in axes]
    rows = tuple(tuple(row[i] for i in order) for row in grid.rows)
    values = grid.axis_values or ()
    return Grid(tuple(axes), rows, tuple(values[i] for i in order))

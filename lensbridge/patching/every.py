"""Several patching functions at once, stacked on a first axis."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lensbridge.patching import published
from lensbridge.patching.grid import Grid
from lensbridge.patching.metric import MetricFunction
from lensbridge.patching.published import PatchingFunction
from lensbridge.patching.result import PatchingResult

if TYPE_CHECKING:
    from lensbridge.model import LensModel

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
) -> PatchingFunction:
    """A function that runs several, whose results lie on a first axis in their order."""

    def patch(
        model: "LensModel",
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

    Keys and values have a place for each key/value head; where those are fewer than the heads, the
    places beyond them are NaN.""",
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

    Keys and values have a place for each key/value head; where those are fewer than the heads, the
    places beyond them are NaN.""",
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

    Layers that have no attention or no MLP (hybrids) are NaN there.""",
    "`[3, layer, pos]`",
)


def _run(
    functions: Iterable[PatchingFunction],
    model: "LensModel",
    corrupted: Any,
    clean: Mapping[str, Tensor],
    metric: Any,
    options: Mapping[str, Any],
) -> list[PatchingResult]:
    """The sweeps one after the other, up to one that was interrupted."""
    found: list[PatchingResult] = []
    for function in functions:
        found.append(function(model, corrupted, clean, metric, **{**options, "baseline": True}))
        if found[-1].partial:
            break
    return found


def _stacked(
    sweeps: Sequence[PatchingResult],
    axes: tuple[str, ...],
    types: list[str],
    options: Mapping[str, Any],
) -> Any:
    """One result of several on a new first axis; a tensor where one sweep would give one."""
    first, lead = sweeps[0], int(sweeps[0].has_metric_axis)
    found = [_laid_out(sweep.grid, axes) for sweep in sweeps]
    values = [
        sorted({v for g in found for v in (g.axis_values or ())[i]}) for i in range(len(axes))
    ]
    whole = Grid.over(("patch_type", *axes), [range(len(types)), *values])
    examples = first.values.shape[lead + len(axes) :]
    stacked = first.values.new_full(
        (*first.values.shape[:lead], *whole.shape, *examples), torch.nan
    )
    rows, whole_metrics = [], (slice(None),) * lead
    for kind, (sweep, grid) in enumerate(zip(sweeps, found, strict=True)):
        for theirs, row in zip(sweep.grid.rows, grid.rows, strict=True):
            rows.append((kind, *row))
            to: Any = (*whole_metrics, *whole.place(rows[-1]))
            come: Any = (*whole_metrics, *sweep.grid.place(theirs))
            stacked[to] = sweep.values[come]
    result = PatchingResult(
        values=stacked,
        grid=Grid(whole.axis_names, tuple(rows), whole.axis_values),
        metric_names=first.metric_names,
        reduced=first.reduced,
        baseline=first.baseline if options.get("baseline") else None,
        has_metric_axis=first.has_metric_axis,
        patch_type_names=types,
        partial=sweeps[-1].partial,
        engine=sweeps[-1].engine,
    )
    wants_result = lead or options.get("baseline") or options.get("reduce") == "none"
    return result if wants_result or result.partial else result.values


def _laid_out(grid: Grid, axes: Sequence[str]) -> Grid:
    """A grid with its axes called and ordered as those of the stack."""
    names = [_RENAMED.get(name, name) for name in grid.axis_names]
    order = [names.index(axis) for axis in axes]
    rows = tuple(tuple(row[i] for i in order) for row in grid.rows)
    values = grid.axis_values or ()
    return Grid(tuple(axes), rows, tuple(values[i] for i in order))

"""Direct paths from one head to every later head, the field's published sweep."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import AbsentPointError, InputError
from lensbridge.patching.activation import Prepared, assemble, clean_value
from lensbridge.patching.alignment import check_fit
from lensbridge.patching.branches import Branches
from lensbridge.patching.cell import Cell
from lensbridge.patching.grid import Grid
from lensbridge.patching.metric import MetricFunction, Metrics
from lensbridge.patching.node import Component, Node
from lensbridge.patching.paths import Paths
from lensbridge.patching.running import Engine, entrances, run_cells

if TYPE_CHECKING:
    from lensbridge.model import LensModel


def get_act_patch_direct_path(
    model: "LensModel",
    corrupted_tokens: Any,
    clean_cache: Mapping[str, Tensor],
    corrupted_cache: Mapping[str, Tensor],
    patching_metric: MetricFunction,
    src_layer: int,
    src_head: int,
    component: Component = "q",
    verbose: bool = False,
    *,
    exact: bool | None = None,
) -> Any:
    """Send one head's clean output into each later head's query, key or value alone.

    Args:
        model: the model, in eval mode.
        corrupted_tokens: the input that is run.
        clean_cache: of the clean run, with the head's z.
        corrupted_cache: of the run on `corrupted_tokens`, with the same; it is checked to be that.
        patching_metric: maps logits to a number.
        src_layer: layer of the sending head.
        src_head: the sending head.
        component: which input of the receiving heads.
        verbose: show a progress bar.
        exact: as in `generic_activation_patch`.

    Shapes: `[layer, head]`, for keys and values `[layer, kv_head]`; NaN where there is no such
        path: up to the sender's own layer, and in layers without attention. After an interrupt a
        `PatchingResult` of that shape.

    Raises:
        InputError: a head that there is not, caches that do not fit, or a metric that does not.

    Source: the signature is that of TransformerLens's `get_act_patch_direct_path`.
    """
    source = Node("head", src_layer, src_head)
    metrics = Metrics.of(patching_metric, "scalar")
    receivers = _receivers(Branches(model), component)
    later = {node: point for node, point in receivers.items() if _layer(node) > src_layer}
    z = Branches(model).written(source)
    clean = {z: clean_value(clean_cache, z)}
    if not later:
        raise InputError(f"{source}: no layer behind it has attention, so it has no such path.")
    cells = [Cell(point, None, None) for point in later.values()]
    points = list(dict.fromkeys(later.values()))
    paths = Paths.from_values(
        model, clean, corrupted_tokens, [source], [*points, *entrances(model, cells)]
    )
    tokens = clean_cache.tokens if isinstance(clean_cache, ActivationCache) else None
    check_fit(paths.base, z, clean[z], tokens)
    _check_same_run(paths.base.cache[z], corrupted_cache, z)
    noted = paths.notes(points)
    cells = [_cell(noted[point], node, point) for node, point in later.items()]
    heads = 1 + max(node.head or 0 for node in receivers)
    grid = Grid(
        ("layer", "head"),
        tuple((_layer(node), node.head or 0) for node in later),
        (tuple(range(len(model.native.blocks))), tuple(range(heads))),
    )
    run = run_cells(paths.base, cells, metrics, Engine(exact, verbose=verbose))
    result = assemble(Prepared(paths.base, grid, cells), metrics, run, baseline=False)
    return result if result.partial else result.values


def get_act_patch_direct_path_all_sources(
    model: "LensModel",
    corrupted_tokens: Any,
    clean_cache: Mapping[str, Tensor],
    corrupted_cache: Mapping[str, Tensor],
    patching_metric: MetricFunction,
    component: Component = "q",
    verbose: bool = False,
    *,
    exact: bool | None = None,
) -> Tensor:
    """`get_act_patch_direct_path` from every head of the model.

    Args:
        model: the model, in eval mode.
        corrupted_tokens: the input that is run.
        clean_cache: of the clean run, with every z.
        corrupted_cache: of the run on `corrupted_tokens`, with the same.
        patching_metric: maps logits to a number.
        component: which input of the receiving heads.
        verbose: show progress bars.
        exact: as in `generic_activation_patch`.

    Shapes: `[src_layer, src_head, layer, head]`; for keys and values the last axis counts
        key/value heads. NaN where there is no such path.
    """
    branches = Branches(model)
    receivers, n_layers = _receivers(branches, component), len(branches.blocks)
    attentions = {i: block.attn for i, block in enumerate(branches.blocks) if block.attn}
    last = max(attentions)
    width = max(attn.n_heads for attn in attentions.values())
    heads = 1 + max(node.head or 0 for node in receivers)
    values = torch.full((n_layers, width, n_layers, heads), torch.nan)
    for layer, attn in attentions.items():
        for head in range(attn.n_heads if layer < last else 0):
            values[layer, head] = get_act_patch_direct_path(
                model,
                corrupted_tokens,
                clean_cache,
                corrupted_cache,
                patching_metric,
                layer,
                head,
                component,
                verbose,
                exact=exact,
            )
    return values


def _layer(node: Node) -> int:
    assert node.layer is not None
    return node.layer


def _receivers(branches: Branches, component: Component) -> dict[Node, str]:
    """Every head's query, key or value in the main stack, and where it is.

    Raises:
        AbsentPointError: no layer has one.
    """
    if component not in ("q", "k", "v"):
        raise InputError(f"component is 'q', 'k' or 'v', not {component!r}.")
    found = {}
    for layer, block in enumerate(branches.blocks):
        attn = block.attn
        if attn is None or (component != "q" and attn.k is None):  # reads another layer's keys
            continue
        for head in range(attn.n_heads if component == "q" else attn.n_kv):
            node = Node("head", layer, head, component)
            found[node] = branches.read(node)
    if not found:
        raise AbsentPointError("This model has no attention that is described.")
    return found


def _cell(noted: Tensor, node: Node, point: str) -> Cell:
    index = (slice(None), slice(None), node.head)
    return Cell(point, index, noted[index])


def _check_same_run(z: Tensor, cache: Mapping[str, Tensor], point: str) -> None:
    """Refuse a corrupted cache of another input than the one that is run."""
    theirs = clean_value(cache, point)
    close = theirs.shape == z.shape and torch.allclose(theirs.to(z), z, rtol=1e-2, atol=1e-2)
    if not close:
        raise InputError(
            f"{point} in corrupted_cache is not what corrupted_tokens give: the cache is of "
            "another input."
        )

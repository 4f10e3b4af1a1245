"""Interchange interventions: run on one input with activations of another."""

from typing import Any

import torch

from lensbridge.cache import ActivationCache
from lensbridge.hooked_model import HookedModel, Result
from lensbridge.interventions.columns import Positions
from lensbridge.interventions.exchange import Swap
from lensbridge.interventions.running import run_edited
from lensbridge.points.point_names import NamesFilter

_OF_INPUT = ("prepend_bos", "padding_side")


def source_of(model: HookedModel, given: Any, site: NamesFilter, **forward: Any) -> ActivationCache:
    """The activations of an input at some points, without gradients."""
    with torch.no_grad():
        _, cache = model.run_with_cache(given, names_filter=site, return_type=None, **forward)
    return cache


def interchange(
    model: HookedModel,
    base: Any,
    sources: Any,
    site: NamesFilter,
    base_positions: Positions,
    source_positions: Positions,
    part: dict[str, Any],
    **forward: Any,
) -> "Result":
    """See `model.interchange`; `part` says which part of an activation: subspace, heads, neurons.

    Source: interchange interventions as in Geiger et al. 2021 and pyvene.
    """
    shared = {name: forward[name] for name in _OF_INPUT if name in forward}
    cache = source_of(model, sources, site, **shared)
    swap = Swap(site, cache, source_positions, positions=base_positions, **part)
    return run_edited(model, base, [swap], **forward)

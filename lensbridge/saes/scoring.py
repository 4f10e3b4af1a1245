"""score: how much of some activations an SAE reconstructs, with how many features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lensbridge.errors import InputError
from lensbridge.saes.batches import Data


@dataclass(frozen=True)
class Score:
    """How good an SAE is.

    Args:
        explained: the share of the variance that it reconstructs.
        active: features that are active at an entry, on average.
        alive: the share of features that are active anywhere.
    """

    explained: float
    active: float
    alive: float


@torch.no_grad()
def score(sae: Any, activations: Any, point: Any = None, batch_size: int = 4_096) -> Score:
    """How good an SAE is on activations that it was not trained on.

    Args:
        sae: any SAE with `encode` and `decode`.
        activations: as for `fit`.
        point: as for `fit`.
        batch_size: entries of a batch.

    Raises:
        InputError: there are several points, or too few entries.
    """
    first = next(sae.parameters(), None) if isinstance(sae, torch.nn.Module) else None
    device = None if first is None else first.device
    data = Data.of(activations, point, batch_size, None, 0, device)
    error, squares, total, count = 0.0, 0.0, torch.zeros(data.width, dtype=torch.float64), 0
    active, alive = 0.0, None
    for batch in data.epochs():
        x = batch.to(data.device, torch.float32)
        features = sae.encode(x)
        error += float((x - sae.decode(features)).double().square().sum())
        squares += float(x.double().square().sum())
        total, count = total + x.double().sum(0).cpu(), count + len(x)
        on = features > 0
        active += float(on.sum())
        alive = on.any(0) if alive is None else alive | on.any(0)
    variance = squares - float(total.square().sum()) / count
    assert alive is not None
    if not variance > 0:
        raise InputError("All activations are equal, so there is no variance to explain.")
    return Score(1 - error / variance, active / count, float(alive.float().mean()))

"""fit: train a sparse autoencoder on activations that a harvest wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.saes.batches import Data
from lensbridge.saes.trained import Config, Kind, TrainedSAE

_DEAD_AFTER = 1_000_000
"""Entries after which a feature that was active in none counts as dead."""


@dataclass(frozen=True)
class Step:
    """The state of a training.

    Args:
        step: its number.
        loss: squared error of the scaled activations, by their variance, and the penalty.
        unexplained: squared error in this batch, by the variance of the data.
        active: features that are active at an entry, on average.
        dead: features that were active nowhere for a long time.
    """

    step: int
    loss: float
    unexplained: float
    active: float
    dead: int


def fit(
    activations: Any,
    point: Any = None,
    *,
    d_sae: int,
    kind: Kind = "topk",
    k: int = 32,
    penalty: float = 1e-3,
    steps: int = 2_000,
    batch_size: int = 4_096,
    learning_rate: float = 1e-3,
    window: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    told: Callable[[Step], None] | None = None,
) -> TrainedSAE:
    """Train a sparse autoencoder on activations.

    The activations are scaled to a mean squared norm of their width for the training; the scale is
    folded into the weights, so that the SAE takes them as they are. Rows of the decoder have length
    1 while it trains. For "topk" the dead features learn what the others leave over.

    Args:
        activations: `lensbridge.Activations`, or a tensor `[entry, width]`.
        point: which point of the activations; None: the only one.
        d_sae: how many features.
        kind: "topk" or "standard".
        k: features that are active at an entry, for "topk".
        penalty: weight of the features' sum, for "standard".
        steps: batches; the data are gone through as often as needed.
        batch_size: entries of a batch.
        learning_rate: of Adam; it falls to 0 over the last fifth of the steps.
        window: entries that are mixed in memory, so that files are read from front to back. None:
            entries are read in fully random order.
        seed: of the first weights and of the order.
        device: where it trains; None: where the activations are.
        told: called after each step.

    Raises:
        InputError: a number that does not fit, or there is more than one point.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (top-k and the auxiliary
        loss); Bricken et al. 2023, "Towards Monosemanticity" (the L1 penalty).

    Example:
        >>> import torch
        >>> from lensbridge.saes import fit, score
        >>> found = torch.randn(512, 8)
        >>> sae = fit(found, d_sae=16, k=2, steps=20, batch_size=64)
        >>> sae.encode(found).count_nonzero(-1).max().item()
        2
    """
    _require(d_sae=d_sae, k=k, steps=steps, batch_size=batch_size)
    if kind not in ("topk", "standard"):
        raise InputError(f"kind is 'topk' or 'standard', not {kind!r}.")
    if kind == "topk" and k > d_sae:
        raise InputError(f"k={k} features cannot be active of {d_sae}.")
    data = Data.of(activations, point, batch_size, window, seed, device)
    cfg = Config(kind, data.width, d_sae, k if kind == "topk" else 0, data.metadata)
    training = Training(cfg, data, penalty, learning_rate, steps, seed)
    with torch.inference_mode(False), torch.enable_grad():
        for number, batch in enumerate(islice(data.batches(), steps)):
            step = training.step(number, batch)
            if told is not None:
                told(step)
    return training.finished()


def _require(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name}={value} is too small: it is 1 or more.")


class Training:
    """An SAE while it is trained.

    Args:
        cfg: of the SAE.
        data: what it is trained on.
        penalty: of the features' sum, for "standard".
        learning_rate: at the beginning.
        steps: how many there will be.
        seed: of the first weights.
    """

    def __init__(
        self, cfg: Config, data: Data, penalty: float, learning_rate: float, steps: int, seed: int
    ) -> None:
        sample = data.sample.to(data.device, torch.float32)
        norm = (sample - sample.mean(0)).square().sum(-1).mean().sqrt()
        if not bool(sample.isfinite().all()):
            raise InputError("There are activations that are infinite or not a number.")
        if not bool(norm > 0):
            raise InputError("All activations are equal, so there is nothing to learn.")
        self.scale = float(cfg.d_in**0.5 / norm)
        self.variance = float(cfg.d_in)  # of the scaled data; that of a batch may be 0
        self.sae = _begun(cfg, sample.mean(0) * self.scale, seed).to(data.device)
        self.penalty, self.steps = penalty, steps
        self.optimizer = torch.optim.Adam(
            self.sae.parameters(), lr=learning_rate, betas=(0.9, 0.999)
        )
        falling = max(1, steps // 5)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, max(1, steps - step) / falling)
        )
        self.idle = torch.zeros(cfg.d_sae, dtype=torch.long, device=data.device)

    def step(self, number: int, batch: Tensor) -> Step:
        """One step of gradient descent. Shapes: batch `[entry, d_in]`"""
        sae, x = self.sae, batch * self.scale
        features = sae.encode(x)
        error = x - sae.decode(features)
        unexplained = error.square().sum(-1).mean() / self.variance
        loss = unexplained + self._beside(x, features, error)
        self.optimizer.zero_grad()
        loss.backward()
        self._keep_unit_rows()
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
            active = features > 0
            self.idle = torch.where(active.any(0), 0, self.idle + len(x))
        return Step(
            number,
            float(loss.detach()),
            float(unexplained.detach()),
            float(active.sum(-1).float().mean()),
            int((self.idle > self._patience()).sum()),
        )

    def _patience(self) -> int:
        return min(_DEAD_AFTER, self.steps * 64)

    def _beside(self, x: Tensor, features: Tensor, error: Tensor) -> Tensor:
        """The L1 penalty; or for "topk" the error of dead features on what the others left."""
        if self.sae.cfg.architecture == "standard":
            return self.penalty * features.sum(-1).mean()
        dead = (self.idle > self._patience()).nonzero().flatten()
        if not len(dead):
            return x.new_zeros(())
        sae = self.sae
        pre = ((x - sae.b_dec) @ sae.W_enc[:, dead] + sae.b_enc[dead]).relu()
        found = pre.topk(min(len(dead), max(1, sae.cfg.d_in // 2)), dim=-1)
        chosen = torch.zeros_like(pre).scatter(-1, found.indices, found.values)
        left = error.detach() - chosen @ sae.W_dec[dead]
        return left.square().sum(-1).mean() / self.variance / 32

    @torch.no_grad()
    def _keep_unit_rows(self) -> None:
        """Take the part of the gradient that would change the length of the decoder's rows off."""
        grad, rows = self.sae.W_dec.grad, self.sae.W_dec
        assert grad is not None
        grad -= (grad * rows).sum(1, keepdim=True) * rows

    @torch.no_grad()
    def finished(self) -> TrainedSAE:
        """The SAE for activations as they are, without a graph."""
        sae = self.sae
        sae.W_enc.mul_(self.scale)
        sae.W_dec.div_(self.scale)
        sae.b_dec.div_(self.scale)
        return sae.eval().requires_grad_(False)


def _begun(cfg: Config, centre: Tensor, seed: int) -> TrainedSAE:
    """An SAE before its first step: random directions, which the encoder reads and writes."""
    sae, keys = TrainedSAE(cfg), torch.Generator().manual_seed(seed)
    rows = torch.randn(cfg.d_sae, cfg.d_in, generator=keys)
    with torch.no_grad():
        sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(centre.cpu())
    return sae

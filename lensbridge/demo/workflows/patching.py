"""Activation patching by layer and position."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.demo.text import Prompt
from lensbridge.demo.workflows.runs import Answers, answers_of, as_logits, cached, largest, strings
from lensbridge.errors import InputError, LensbridgeError
from lensbridge.hooks.callbacks import Hook
from lensbridge.model import LensModel

PATCHED = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Run:
    """The prediction of the model for one text.

    Args:
        tokens: the text's tokens.
        difference: logit difference.
        next: the likeliest next token.
        probability: its probability.

    Units: `difference` in logits.
    """

    tokens: tuple[str, ...]
    difference: float
    next: str
    probability: float


@dataclass(frozen=True)
class Patching:
    """How much each patch from the clean into the corrupted run restores.

    Args:
        prompt: the clean and the corrupted text.
        clean: the run on the clean text.
        corrupted: the run on the corrupted text, which is as long.
        grids: for each patched point the effect of every patch.

    Shapes: each grid `[layer, pos]`.
    Units: fractions of the difference between the corrupted logit difference (0) and the clean one
        (1).
    """

    prompt: Prompt
    clean: Run
    corrupted: Run
    grids: dict[str, Tensor]

    def best(self, point: str) -> tuple[int, int]:
        """Layer and position of the patch that restores most."""
        return largest(self.grids[point])

    @property
    def arrival(self) -> int | None:
        """The first layer before which patching the last position restores half, or None."""
        held = (self.grids["resid_pre"][:, -1] >= 0.5).nonzero()
        return int(held[0]) if len(held) else None


@torch.no_grad()
def patch_positions(model: LensModel, prompt: Prompt) -> Patching:
    """Copy one activation of the clean run into the corrupted run, for every layer and position.

    Raises:
        InputError: the two texts differ in length.
        LensbridgeError: both runs have the same logit difference, so there is nothing to restore.
    """
    clean, corrupted = _aligned(model, prompt)
    answers = answers_of(model, [prompt])
    top, floor = (_run(model, ids, answers) for ids in (clean, corrupted))
    if top.difference == floor.difference:
        raise LensbridgeError(
            f"{prompt.text!r} and {prompt.corrupted!r} give the same logit difference, "
            f"{floor.difference:.3g}: there is nothing to restore. Choose texts that the model "
            "distinguishes."
        )
    cache = cached(model, clean, PATCHED)

    def restored(logits: Tensor) -> Tensor:
        gained = answers.difference(logits) - floor.difference
        return gained / (top.difference - floor.difference)

    grids = {point: _patch_grid(model, point, cache, corrupted, restored) for point in PATCHED}
    return Patching(prompt, top, floor, grids)


def _run(model: LensModel, ids: Tensor, answers: Answers) -> Run:
    logits = as_logits(model(ids))
    probability, token = logits[0, -1].softmax(-1).max(-1)
    return Run(
        tokens=strings(model, ids[0]),
        difference=float(answers.difference(logits)),
        next=model.to_single_str_token(int(token)),
        probability=float(probability),
    )


def _aligned(model: LensModel, prompt: Prompt) -> tuple[Tensor, Tensor]:
    clean, corrupted = model.to_tokens(prompt.text), model.to_tokens(prompt.corrupted)
    if clean.shape != corrupted.shape:
        raise InputError(
            f"{prompt.text!r} is {clean.shape[1]} tokens and {prompt.corrupted!r} "
            f"{corrupted.shape[1]}; patching by position needs texts of one length."
        )
    return clean, corrupted


def _patch_grid(
    model: LensModel,
    point: str,
    clean: ActivationCache,
    corrupted: Tensor,
    restored: Callable[[Tensor], Tensor],
) -> Tensor:
    """One run for each layer; row `p` of its batch is patched at position `p`."""
    positions = torch.arange(corrupted.shape[1], device=corrupted.device)
    batch = corrupted.expand(len(positions), -1)

    def effects(layer: int) -> Tensor:
        def patch(value: Tensor, hook: Hook) -> None:
            value[positions, positions] = clean[point, layer][0]

        return restored(as_logits(model.run_with_hooks(batch, fwd_hooks=[((point, layer), patch)])))

    return torch.stack([effects(layer) for layer in range(model.cfg.n_layers)])

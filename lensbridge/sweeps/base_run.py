"""BaseRun: the run that a sweep starts from, done once before any cell runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Hook
from lensbridge.sweeps.edit import Edit


@dataclass(frozen=True)
class BaseRun:
    """A model, an input, and what the unpatched run of it gave.

    Args:
        model: the model.
        input: what it is run on: tokens, text, or a mapping with a mask among it.
        logits: of the unpatched run.
        cache: the activations that the sweep needs of that run.
    """

    model: HookedModel
    input: Any
    logits: Tensor
    cache: ActivationCache = field(repr=False)

    @classmethod
    def run(cls, model: HookedModel, given: Any, points: Iterable[str]) -> "BaseRun":
        """Run the model once and keep some activations.

        Raises:
            InputError: the model is in training mode, where no two runs are alike.
            HookNeverFiredError: a point that the run does not pass.
        """
        if any(module.training for module in model.hf_model.modules()):
            raise InputError(
                "The model is in training mode, where dropout makes every run another one. Call "
                "model.eval() first."
            )
        wanted = list(dict.fromkeys(points))
        with torch.no_grad():
            logits, cache = model.run_with_cache(given, names_filter=wanted)
        return cls(model, given, logits, cache)

    @property
    def batch(self) -> int:
        """How many examples there are."""
        return self.logits.shape[0]

    @cached_property
    def n_tokens(self) -> int:
        """Positions of all examples together."""
        return self.cache.tokens.numel() if self.cache.tokens is not None else self.batch

    def shape(self, point: str) -> tuple[int, ...]:
        """Of an activation that was kept."""
        return tuple(self.cache[point].shape)

    def axes(self, point: str) -> list[str]:
        """Letters of an activation's axes, as in the table of points."""
        return self.model.engine.sites[point].axes.split()

    def patched(self, cells: Sequence[Edit]) -> Tensor:
        """Logits of one run with all of these cells patched."""
        return self.model.run_with_hooks(self.input, [hook_of(cell) for cell in cells])


def hook_of(cell: Edit) -> tuple[Any, Any]:
    """A cell as a pair for `fwd_hooks`."""

    def patch(activation: Tensor, hook: Hook) -> Tensor:
        return cell.apply(activation)

    return cell.point, patch

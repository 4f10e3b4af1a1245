"""BaseRun: the unpatched run, which is made once before any cell runs."""

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
    """The unpatched run of a model on an input.

    Args:
        model: the model.
        input: what it is run on: tokens, text, or a mapping that may have a mask.
        logits: of this run.
        cache: the activations of it that the sweep needs.
    """

    model: HookedModel
    input: Any
    logits: Tensor
    cache: ActivationCache = field(repr=False)

    @classmethod
    def run(cls, model: HookedModel, given: Any, points: Iterable[str]) -> "BaseRun":
        """Run the model once and keep some activations.

        Raises:
            InputError: the model is in training mode, in which two runs differ.
            HookNeverFiredError: the run does not pass one of the points.
        """
        if any(module.training for module in model.hf_model.modules()):
            raise InputError(
                "The model is in training mode, in which dropout makes every run different. Call "
                "model.eval() first."
            )
        wanted = list(dict.fromkeys(points))
        with torch.no_grad():
            logits, cache = model.run_with_cache(given, names_filter=wanted)
        return cls(model, given, logits, cache)

    @property
    def batch(self) -> int:
        """Number of examples."""
        return self.logits.shape[0]

    @cached_property
    def n_tokens(self) -> int:
        """Number of positions of all examples together."""
        return self.cache.tokens.numel() if self.cache.tokens is not None else self.batch

    def shape(self, point: str) -> tuple[int, ...]:
        """Shape of an activation that was kept."""
        return tuple(self.cache[point].shape)

    def axes(self, point: str) -> list[str]:
        """Letters of an activation's axes (see `docs/points.md`)."""
        return self.model.engine.sites[point].axes.split()

    def patched(self, cells: Sequence[Edit]) -> Tensor:
        """Logits of one run with all of these cells patched."""
        return self.model.run_with_hooks(self.input, [hook_of(cell) for cell in cells])


def hook_of(cell: Edit) -> tuple[Any, Any]:
    """A cell as a pair for `fwd_hooks`."""

    def patch(activation: Tensor, hook: Hook) -> Tensor:
        return cell.apply(activation)

    return cell.point, patch

"""BaseRun: the unpatched run, which is made once before any cell runs."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback, Hook
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.sweeps.edit import Edit


@dataclass(frozen=True)
class BaseRun:
    """The unpatched run of a model on an input.

    Args:
        model: the model.
        input: what it is run on: tokens, text, or a mapping that may have a mask.
        logits: of this run.
        cache: the activations of it that the sweep needs.
        arriving: streams before layers as they arrive there, where interventions of a context edit
            them before they are kept in the cache.
    """

    model: HookedModel
    input: Any
    logits: Tensor
    cache: ActivationCache = field(repr=False)
    arriving: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

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
        arriving: dict[str, Tensor] = {}
        with torch.no_grad(), noting_arrivals(model, wanted, arriving):
            logits, cache = model.run_with_cache(given, names_filter=wanted)
        return cls(model, given, logits, cache, arriving)

    def stream(self, layer: int) -> Tensor:
        """The stream that arrives at a layer of the main stack, before any hook there."""
        name = f"{self.model.native.main.prefix}.{layer}.hook_resid_pre"
        return self.arriving[name] if name in self.arriving else self.cache[name]

    @property
    def batch(self) -> int:
        """Number of examples."""
        return self.logits.shape[0]

    @cached_property
    def n_tokens(self) -> int:
        """Number of positions of all examples together."""
        return self.cache.tokens.numel() if self.cache.tokens is not None else self.batch

    @property
    def positions(self) -> PositionLabels | None:
        """The tokens as labels of positions; None if they are not those of all points."""
        if self.model.native.is_encoder_decoder:
            return None
        return PositionLabels.of(self.model.tokens, self.cache.tokens, self.cache.attention_mask)

    def shape(self, point: str) -> tuple[int, ...]:
        """Shape of an activation that was kept."""
        return tuple(self.cache[point].shape)

    def axes(self, point: str) -> list[str]:
        """Letters of an activation's axes (see `docs/points.md`)."""
        return self.model.engine.sites[point].axes.split()

    def patched(self, edits: Iterable[Edit]) -> Tensor:
        """Logits of one run with all of these edits, in their order."""
        return self.model.run_with_hooks(self.input, [hook_of(edit) for edit in edits])


def noting_arrivals(
    model: HookedModel, points: Iterable[str], arriving: dict[str, Tensor]
) -> AbstractContextManager[None]:
    """Note streams before the interventions of a context edit them.

    Args:
        model: the model.
        points: what is kept of the run; the streams before layers among them are noted.
        arriving: where they are noted. Nothing is where no run can start at a layer: other hooks
            than interventions are on the model.
    """
    if model.engine.is_idle or not model.engine.works_by_row:
        return nullcontext()

    def noting(name: str) -> Callable[[Tensor], None]:
        return lambda value: arriving.update({name: value.clone()})

    names = [name for name in points if name.endswith("hook_resid_pre")]
    return model.listening([Callback(n, "read", noting(n), first=True, by_row=True) for n in names])


def hook_of(edit: Edit) -> tuple[Any, Any]:
    """An edit as a pair for `fwd_hooks`."""

    def patch(activation: Tensor, hook: Hook) -> Tensor:
        return edit.apply(activation)

    return edit.point, patch

"""An experiment on a model in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import Keep
from lensbridge.errors import InputError
from lensbridge.experiments.experiment import Experiment
from lensbridge.experiments.result import ExperimentResult, GradientsOf
from lensbridge.generation.options import as_asked
from lensbridge.gradients.points import gradients_of_each
from lensbridge.hooked_model import HookedModel, LogitsAndLoss, ReturnType
from lensbridge.inputs.prompts import is_text
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.running import edited
from lensbridge.interventions.when import When
from lensbridge.metrics import BoundMetric, bound
from lensbridge.patching.sweeping import sweep
from lensbridge.sweeps.result import PatchingResult


@dataclass(frozen=True, eq=False)
class Running:
    """One experiment on one model.

    Args:
        model: the model.
        experiment: what is run.
        generate: `model.generate`.
    """

    model: HookedModel
    experiment: Experiment
    generate: Callable[..., Any]

    def result(self) -> ExperimentResult:
        """Run everything that the experiment asks for.

        Raises:
            InputError: a part does not fit the model or the inputs.
        """
        self._check()
        logits, loss, cache = self._run()
        asked = self.experiment
        tokens, text = self._generated()
        return ExperimentResult(
            logits=logits if "logits" in asked.returns else None,
            loss=loss,
            cache=cache if asked.points else None,
            metrics={} if logits is None else self._measured(logits),
            sweep=self._swept(),
            gradients=self._gradients(),
            tokens=tokens,
            text=text,
        )

    # --- what is run -------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> Any:
        """The inputs, with or without BOS as the experiment says."""
        given, bos = self.experiment.inputs, self.experiment.prepend_bos
        return given if bos is None or not is_text(given) else self.model.tokens.encode(given, bos)

    @cached_property
    def acting(self) -> list[Intervention]:
        """The interventions that act on the inputs, and not only on what is generated."""
        return [one for one in self.experiment.edits if When.of(one.when).reaches_prompt]

    @cached_property
    def metrics(self) -> dict[str, BoundMetric]:
        """The metrics, bound to this run."""
        return bound(self.model, self.inputs, self.experiment.metrics)

    def _check(self) -> None:
        """Refuse what would fail later: nothing is run before.

        Raises:
            InputError: interventions that would never act; metrics that cannot be combined.
        """
        asked = self.experiment
        if asked.generate is None and len(self.acting) < len(asked.edits):
            raise InputError(
                "An intervention acts on tokens that generation adds, and the experiment generates "
                "none. Pass generate={...}, or leave when=... out."
            )
        kept = {one.reduce == "none" for one in asked.metrics.values()}
        if asked.sweep is not None and len(kept) > 1:
            raise InputError(
                "In a sweep all metrics keep the examples or none does: give all of them "
                "reduce='none', or none."
            )
        assert self.metrics is not None  # its tokens are looked up before anything is run

    # --- the runs ----------------------------------------------------------------------------

    def _run(self) -> tuple[Tensor | None, Tensor | None, ActivationCache]:
        asked = self.experiment
        with torch.no_grad(), edited(self.model, self.acting):
            found, cache = self.model.run_with_cache(
                self.inputs,
                names_filter=asked.points or [],
                pos_slice=asked.pos_slice,
                return_type=self._wanted,
            )
        if isinstance(found, LogitsAndLoss):
            return found.logits, found.loss, cache
        return (found, None, cache) if self._wanted == "logits" else (None, found, cache)

    @property
    def _wanted(self) -> ReturnType:
        asked = self.experiment
        logits = "logits" in asked.returns or asked.metric is not None
        if "loss" in asked.returns:
            return "both" if logits else "loss"
        return "logits" if logits else None

    @torch.no_grad()
    def _measured(self, logits: Tensor) -> dict[str, Tensor]:
        return {name: one(logits) for name, one in self.metrics.items()}

    def _swept(self) -> PatchingResult | None:
        asked = self.experiment
        if asked.sweep is None:
            return None
        apart = any(one.reduce == "none" for one in asked.metrics.values())
        named = isinstance(asked.metric, Mapping)
        metric: Any = self.metrics if named else self.metrics["metric"]
        with edited(self.model, self.acting):
            return sweep(
                self.model,
                self.inputs,
                asked.sweep,
                metric,
                reduce="none" if apart else "scalar",
                baseline=True,
            )

    def _gradients(self) -> GradientsOf | None:
        asked = self.experiment
        if asked.gradients is None:
            return None
        each = [_whole(one) for one in self.metrics.values()]
        keep = Keep(pos_slice=asked.pos_slice)
        with edited(self.model, self.acting):
            found = gradients_of_each(self.model, self.inputs, asked.gradients, each, keep)
        named = {name: one.gradients for name, one in zip(self.metrics, found, strict=True)}
        return named if isinstance(asked.metric, Mapping) else named["metric"]

    def _generated(self) -> tuple[Tensor | None, Any]:
        asked = self.experiment
        if asked.generate is None:
            return None, None
        said = {"interventions": asked.edits, "return_type": "tokens", "verbose": False}
        tokens = self.generate(self.inputs, **said, **asked.generate)
        if self.model.tokenizer is None:
            return tokens, None
        side = asked.generate.get("padding_side") or "left"
        mask = self.model.prepare(self.inputs, padding_side=side).mask
        apart = self.model.native.is_encoder_decoder or mask is None
        return tokens, as_asked(
            tokens, asked.inputs, "str", self.model.tokens, None if apart else mask
        )


def _whole(metric: BoundMetric) -> BoundMetric:
    """A metric as one number. Of one that keeps the examples it is the sum, whose gradient is each
    example's own.
    """
    return metric.reduced("sum") if metric.keeps_examples else metric

"""VLLMModel: a model that vLLM runs, with the methods of a lens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.methods import AnalysisMethods
from lensbridge.engines.vllm import settings
from lensbridge.engines.vllm.fetched_weights import FetchedWeights
from lensbridge.engines.vllm.generating import VLLMGeneration
from lensbridge.engines.vllm.requests import Runner, ids_of
from lensbridge.engines.vllm.row_runs import shared_and_own
from lensbridge.engines.vllm.sites import KERNEL
from lensbridge.engines.vllm.skeleton import skeleton
from lensbridge.engines.vllm.workers import Workers
from lensbridge.errors import UnsupportedError
from lensbridge.experiments import Experiment, ExperimentResult
from lensbridge.experiments.methods import ExperimentMethods
from lensbridge.hooked_model import LogitsAndLoss, Result, ReturnType
from lensbridge.hooks.callbacks import Callback
from lensbridge.inputs.prepare import Prepared, Preparer
from lensbridge.interventions.callbacks import acting
from lensbridge.interventions.methods import InterventionMethods
from lensbridge.native.parts import ResolvedModel
from lensbridge.patching.methods import SweepMethods
from lensbridge.points.names import template
from lensbridge.points.point_names import PointNames
from lensbridge.sites.wiring.index import SiteIndex


class _HostPreparer(Preparer):
    """Makes ids on the CPU, from where vLLM takes them."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


class VLLMModel(
    ExperimentMethods,
    VLLMGeneration,
    InterventionMethods,
    SweepMethods,
    AnalysisMethods,
    FetchedWeights,
):
    """A model that vLLM runs: activations, interventions and weights under the field's names.

    It has the methods of `LensModel` for runs, caches, interventions, sweeps, generation,
    experiments and analysis; those that need gradients or other modules are not there.
    What is read or edited is sent to vLLM's workers as data, and requests of one batch can have
    interventions of their own. `load_vllm` makes one.

    Args:
        llm: an `LLM` of vLLM.
        find_tokenizer: gives its tokenizer.

    Attributes:
        llm: the `LLM`.
        hf_model: the HuggingFace model without weights, which names and sizes are made of.
    """

    def __init__(self, llm: Any, find_tokenizer: Callable[[], Any] | None = None) -> None:
        self.llm = llm
        self._workers = Workers(llm)
        self._told: dict[str, Any] = self._workers.ask("describe")[0]
        self._runner = Runner(self._workers, settings.vllm().SamplingParams)
        super().__init__(skeleton(llm), find_tokenizer or llm.get_tokenizer)

    def _look(self) -> None:
        super()._look()
        self.preparer = _HostPreparer(self.native, self.tokens, self.native.calling.accepted)

    def _points(self, native: ResolvedModel) -> tuple[SiteIndex, PointNames]:
        every, names = super()._points(native)
        there = set(self._told["points"])
        fixed = {name: site for name, site in every.fixed.items() if name in there}
        lost = {template(name) for name in every.fixed if name not in there}
        absent = {**names.absent, **dict.fromkeys(lost, KERNEL)}
        here = SiteIndex(fixed, {})
        return here, replace(names, index=here, absent=absent, native=())

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in vLLM."""
        found: torch.dtype = self.llm.llm_engine.vllm_config.model_config.dtype
        return found

    @property
    def device(self) -> torch.device:
        """Where inputs go and activations come back."""
        return torch.device("cpu")

    def plan(self, *args: Any, **options: Any) -> Any:
        """Refused: vLLM decides what a run takes.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "vLLM decides what runs together and where it is kept, so there is no plan of a run. "
            "Keep fewer points (names_filter) or positions (pos_slice) where memory is short."
        )

    def logit_lens(self, *args: Any, **options: Any) -> Any:
        """The logit lens, computed in this process; see `LensModel.logit_lens`.

        Args:
            args: as there.
            options: as there.
        """
        self.fetch_weights()
        return super().logit_lens(*args, **options)

    # --- runs --------------------------------------------------------------------------------

    def run_callbacks(  # type: ignore[override]  # one of its overloads
        self,
        callbacks: list[Callback],
        input: Any,
        return_type: ReturnType,
        *,
        loss_per_token: bool = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        labels: Any = None,
        tokens: Any = None,
        interventions: Any = (),
        **prepare: Any,
    ) -> tuple[Result, Prepared]:
        """One run of every row as a request of vLLM; see `HookedModel.run_callbacks`.

        Args:
            callbacks: what reads activations, and interventions.
            input: text or ids.
            return_type: as in `forward`.
            loss_per_token: as in `forward`.
            start_at_layer: refused.
            stop_at_layer: the layer whose input is returned; vLLM runs the others too.
            labels: refused, as `tokens`.
            tokens: refused.
            interventions: one or several for all rows; or a list with an entry for each row: its
                interventions, or None.
            prepare: options of `prepare`.

        Raises:
            UnsupportedError: what vLLM cannot do.
            InputError: an input or an intervention that does not fit.
        """
        self._check_return_type(return_type, stop_at_layer)
        _refuse(start_at_layer=start_at_layer, labels=labels, tokens=tokens)
        prepared = self._prepared(input, prepare)
        values: dict[str, Tensor] = {}
        ends = [self._stream_at(stop_at_layer, values)] if stop_at_layer is not None else []
        wants_logits = return_type is not None and stop_at_layer is None
        heads = [Callback("hook_logits", "read", _into(values, "logits"))] if wants_logits else []
        self.run_rows(prepared, [*callbacks, *ends, *heads], interventions, max_tokens=1)
        if stop_at_layer is not None:
            return values["stream"], prepared
        if not wants_logits:
            return None, prepared
        return self._returned(values["logits"], return_type, prepared, loss_per_token), prepared

    def _returned(
        self, logits: Tensor, return_type: ReturnType, prepared: Prepared, per_token: bool
    ) -> Result:
        if return_type == "logits":
            return logits
        loss = self.loss_fn(logits, ids_of(prepared), prepared.mask, per_token)
        return LogitsAndLoss(logits, loss) if return_type == "both" else loss

    def _stream_at(self, layer: int, values: dict[str, Tensor]) -> Callback:
        depth = self.native.sizes.n_layers
        at = layer + depth if layer < 0 else layer
        name = ("resid_pre", at) if at < depth else ("resid_post", depth - 1)
        return Callback(self.vocabulary.canonical(name), "read", _into(values, "stream"))

    def run_with_cache(self, *args: Any, incl_bwd: bool = False, **options: Any) -> Any:
        """Run texts in vLLM and keep activations; see `LensModel.run_with_cache`.

        Args:
            args: as there.
            incl_bwd: refused.
            options: as there, and `interventions`: one or several for all rows, or a list with an
                entry for each row: its interventions, or None.

        Raises:
            AbsentPointError: a point that vLLM never has.
            UnsupportedError: what vLLM cannot do.
        """
        if incl_bwd:
            raise UnsupportedError(
                "vLLM computes no gradients. Load the model with lensbridge.load(name)."
            )
        return super().run_with_cache(*args, **options)

    def run_with_interventions(self, input: Any, interventions: Any, **forward: Any) -> Any:
        """Run texts in vLLM with interventions.

        Args:
            input: text or ids.
            interventions: one or several for all rows; or a list with an entry for each row: its
                interventions, or None.
            forward: as in `forward`.

        Raises:
            InputError: an intervention does not fit.
            UnsupportedError: what vLLM cannot do.
        """
        common, own = shared_and_own(interventions, 0)
        acting([*common, *(one for several in own for one in several)])
        return self.run_with_hooks(input, interventions=interventions, **forward)

    # --- experiments ---------------------------------------------------------------------------

    def run(self, experiment: Experiment) -> ExperimentResult:
        """Run an experiment in vLLM; see `LensModel.run`.

        Raises:
            UnsupportedError: it asks for gradients.
        """
        from lensbridge.engines.vllm.experiments import run

        return run(self, experiment)

    def sweep(self, base: Any, cells: Any, metric: Any, **options: Any) -> Any:
        """One run of the input for each cell, all cells of a batch in one dynamic batch.

        Args:
            base: the input.
            cells: interventions, or lists of them.
            metric: declared metrics or functions of logits, as in `LensModel.sweep`.
            options: `reduce`, `baseline` and `max_batch_tokens`.

        Raises:
            UnsupportedError: a cell that is no intervention.
        """
        from lensbridge.engines.vllm.experiments import sweep

        return sweep(self, base, cells, metric, **options)


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise UnsupportedError(
                f"The vLLM engine takes no {name}: vLLM runs whole texts through all layers. Load "
                "the model with lensbridge.load(name)."
            )


def _into(values: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    return lambda value: values.update({name: value})

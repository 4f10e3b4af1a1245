"""NNsight: experiments as traces of nnsight, which run here or on NDIF."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.cache import ActivationCache
from lensbridge.engines.nnsight.recorder import Recorder
from lensbridge.engines.nnsight.results import Asked, Given, sweep_of
from lensbridge.engines.nnsight.running import RecordedRunning
from lensbridge.engines.nnsight.twin import Twin
from lensbridge.errors import InputError, UnsupportedError
from lensbridge.experiments import Experiment, ExperimentResult
from lensbridge.generation.options import as_asked
from lensbridge.interventions.intervention import Intervention
from lensbridge.model import LensModel
from lensbridge.points.point_names import NamesFilter
from lensbridge.sweeps.result import PatchingResult

_PARTIAL = ("start_at_layer", "stop_at_layer", "past_key_values", "cache")


class NNsight:
    """A model behind nnsight, under the names of lensbridge.

    An experiment becomes a trace of nnsight: Python with nothing but public functions of torch, so
    the server needs no lensbridge. Weights are not loaded here unless the model runs here.

    Args:
        model: a hub id, a model of transformers, or a model of nnsight.
        remote: where traces run. False: on this machine. "local": on this machine, after they
            were serialised as for a server. True: on NDIF, with the key of nnsight's settings
            (`nnsight.CONFIG.set_default_api_key`). An address: on the NDIF server there.
        trusted: whether the server runs your code beside the model. NDIF runs that of most users in
            another process, without weights and gradients: what needs these is refused here.
        tokenizer: of the model; by default nnsight's.
        options: of `nnsight.modeling.transformers.TransformersModel`, where it is opened here.

    Raises:
        InputError: nnsight is not installed.
        UnsupportedArchitectureError: no description is registered for the class of the model.
    """

    def __init__(
        self,
        model: Any,
        *,
        remote: bool | str = False,
        trusted: bool = False,
        tokenizer: Any = None,
        **options: Any,
    ) -> None:
        self.model = _opened(model, tokenizer, options)
        self.remote = remote
        self.apart = remote not in (False, "local") and not trusted
        self._tokenizer = tokenizer or getattr(self.model, "tokenizer", None)
        self._lock = Lock()

    def __repr__(self) -> str:
        told: dict[Any, str] = {False: "on this machine", True: "on NDIF"}
        where = told.get(self.remote, str(self.remote))
        return f"NNsight({self.lens.cfg.model_name!r}, {where}, {len(self.points)} points)"

    # --- what there is -----------------------------------------------------------------------

    @cached_property
    def _twin(self) -> Twin:
        return Twin(self.model, self._tokenizer)

    def _recording(self) -> AbstractContextManager[tuple[LensModel, Recorder]]:
        return self._twin.recording(self.apart)

    @property
    def lens(self) -> LensModel:
        """A lens on the model without its weights: names, sizes, tokens. It gives no numbers."""
        return self._twin.lens

    @cached_property
    def points(self) -> list[str]:
        """The points that a trace can have, in data-flow order."""
        refused = self._refusal
        return [name for name in self.lens.vocabulary.names if refused(name) is None]

    @cached_property
    def refused(self) -> dict[str, str]:
        """The points that a trace cannot have, each with the reason."""
        told = {name: self._refusal(name) for name in self.lens.vocabulary.names}
        return {name: why for name, why in told.items() if why is not None}

    @property
    def _refusal(self) -> Callable[[str], str | None]:
        names: Any = self.lens.vocabulary
        return names.refused

    # --- experiments -------------------------------------------------------------------------

    def run(self, experiment: Experiment) -> ExperimentResult:
        """Run an experiment: everything that it asks for, in one request.

        Args:
            experiment: as `model.run` of a lens takes it.

        Raises:
            UnsupportedError: it asks for something that no trace can have; nothing is run.
            InputError: a part does not fit the model or the inputs.
        """
        if not isinstance(experiment, Experiment):
            raise InputError(f"run takes an Experiment, not a {type(experiment).__name__}.")
        self._require_gradients(experiment.gradients is not None)
        with self._lock, self._recording() as (lens, recorder):
            running = RecordedRunning(lens, experiment, lens.generate, recorder=recorder)
            asked = Asked(recorder)
            found = asked.note(running.result())
            cells = asked.note(running.cells)
        return self._finished(experiment, asked.run(self.model, self.remote), found, cells)

    def code(self, experiment: Experiment) -> str:
        """The trace of an experiment as Python, which is what nnsight is given.

        Args:
            experiment: as in `run`. Nothing is run.
        """
        self._require_gradients(experiment.gradients is not None)
        with self._lock, self._recording() as (lens, recorder):
            running = RecordedRunning(lens, experiment, lens.generate, recorder=recorder)
            asked = Asked(recorder)
            asked.note(running.result())
            asked.note(running.cells)
        return asked.trace.text(self.remote)

    def _require_gradients(self, wanted: bool) -> None:
        """Refuse gradients where a trace runs in another process than the model.

        Raises:
            UnsupportedError: it does.
        """
        if wanted and self.apart:
            raise UnsupportedError(
                "Gradients cannot be had from NDIF: it runs a trace in another process than the "
                "model, and gradients do not pass between them, unless it trusts you. If it does, "
                "pass trusted=True."
            )

    def _finished(
        self, experiment: Experiment, given: Given, found: ExperimentResult, cells: Any
    ) -> ExperimentResult:
        result = given.of(found)
        tokens = result.tokens
        text = None
        if tokens is not None and self.lens.tokenizer is not None:
            side = (experiment.generate or {}).get("padding_side") or "left"
            mask = self.lens.prepare(experiment.inputs, padding_side=side).mask
            text = as_asked(tokens, experiment.inputs, "str", self.lens.tokens, mask)
        swept = None
        if experiment.sweep is not None:
            swept = sweep_of(experiment, given.of(cells), result.metrics)
        return replace(result, sweep=swept, text=text, engine="nnsight")

    # --- single runs -------------------------------------------------------------------------

    def run_with_cache(
        self, input: Any, names_filter: NamesFilter = "*", **options: Any
    ) -> tuple[Tensor, ActivationCache]:
        """Run the model and keep activations.

        Args:
            input: as in `run_with_cache` of a lens.
            names_filter: which points; a glob selects those that a trace can have.
            options: `pos_slice`, `return_type`, `incl_bwd`, `prepend_bos`...
        """
        return self._run(
            lambda lens: lens.run_with_cache(input, names_filter, **options),
            options,
            bool(options.get("incl_bwd")),
        )

    def run_with_interventions(
        self, input: Any, interventions: Intervention | Iterable[Intervention], **options: Any
    ) -> Any:
        """Run the model with interventions; the logits come back."""
        return self._run(
            lambda lens: lens.run_with_interventions(input, interventions, **options), options
        )

    def run_with_hooks(self, input: Any, fwd_hooks: Iterable[Any] = (), **options: Any) -> Any:
        """Run the model with functions on activations.

        A function is called here, on tensors without values, and what it computes with torch
        becomes part of the trace. So it may not ask for values (`if activation.max() > 1`).

        Args:
            input: as in `run_with_hooks` of a lens.
            fwd_hooks: `(name or filter, fn)` pairs.
            options: other options of a run.
        """
        return self._run(
            lambda lens: lens.run_with_hooks(input, list(fwd_hooks), **options), options
        )

    def gradients(
        self, input: Any, names_filter: NamesFilter, of: Any = "loss", **options: Any
    ) -> Any:
        """Run forward and back, and keep gradients at some points; as `gradients` of a lens."""
        return self._run(
            lambda lens: lens.gradients(input, names_filter, of, **options), options, True
        )

    def sweep(self, input: Any, cells: Any, metric: Any) -> PatchingResult:
        """Run an input once for each cell, in one request.

        Args:
            input: what is run.
            cells: interventions, or lists of several that act together; a mapping names them.
            metric: a declared metric, or several by name.
        """
        found = self.run(Experiment(input, sweep=cells, metric=metric, returns=()))
        assert found.sweep is not None
        return found.sweep

    def generate(self, input: Any, max_new_tokens: int = 10, **options: Any) -> Any:
        """Continue text; interventions act at every step.

        Args:
            input: text, texts or ids.
            max_new_tokens: how many at most.
            options: `interventions`, and options of `generate` of a lens that are data.

        Returns:
            Text for text, ids for ids.
        """
        said = options.pop("interventions", ())
        asked = {"max_new_tokens": max_new_tokens, **options}
        found = self.run(Experiment(input, interventions=said, generate=asked, returns=()))
        is_text = isinstance(input, str) or (isinstance(input, list) and isinstance(input[0], str))
        return found.text if is_text else found.tokens

    def _run(
        self,
        function: Callable[[LensModel], Any],
        options: Mapping[str, Any],
        differentiates: bool = False,
    ) -> Any:
        """Something that a lens does, on the model behind nnsight."""
        _refuse(options)
        self._require_gradients(differentiates)
        with self._lock, self._recording() as (lens, recorder):
            recorder.differentiates = differentiates
            asked = Asked(recorder, differentiates)
            mode = torch.enable_grad() if differentiates else torch.no_grad()
            with mode:
                found = asked.note(function(lens))
        return asked.run(self.model, self.remote).of(found)


def _refuse(options: Mapping[str, Any]) -> None:
    """Refuse runs over a part of the model.

    Raises:
        UnsupportedError: with the option.
    """
    asked = [name for name in _PARTIAL if options.get(name) is not None]
    if asked:
        raise UnsupportedError(
            f"{asked[0]} cannot be passed through nnsight: a trace runs the whole model on ids. "
            "Edit or read the point instead: resid_pre is what a layer reads."
        )


def _opened(model: Any, tokenizer: Any, options: Mapping[str, Any]) -> Any:
    """A model of nnsight.

    Raises:
        InputError: nnsight is not installed.
    """
    try:
        from nnsight.modeling.transformers import TransformersModel
    except ImportError as error:
        raise InputError(
            "This engine needs nnsight 0.8 or newer: pip install 'lensbridge[nnsight]'."
        ) from error
    if not isinstance(model, str | nn.Module):
        return model
    if tokenizer is None and isinstance(model, str):
        tokenizer = _tokenizer_of(model, options)
    own = {} if tokenizer is None else {"tokenizer": tokenizer}
    return TransformersModel(model, **{"task": "text-generation", **own, **options})


def _tokenizer_of(name: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    known = ("revision", "token", "trust_remote_code")
    said = {key: options[key] for key in known if key in options}
    return AutoTokenizer.from_pretrained(name, **said)

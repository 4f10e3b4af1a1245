"""RemoteModel: a model behind a server, with the methods and results of a model here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lensbridge.errors import InputError, UnsupportedError
from lensbridge.experiments import Experiment, ExperimentResult
from lensbridge.interventions.intervention import Intervention
from lensbridge.metrics import Metric
from lensbridge.patching.sweeping import is_several
from lensbridge.remote.kinds import A_FUNCTION
from lensbridge.remote.message import Message
from lensbridge.remote.requests import Progress
from lensbridge.remote.texts import RemoteTexts
from lensbridge.sweeps.cell import Cell

_OF_HOOKS = (
    *("run_with_hooks", "hooks", "add_hook", "add_caching_hooks", "add_perma_hook"),
    *("run_callbacks", "listening"),
)
"""Methods of `LensModel` that take functions to run inside the model."""


class RemoteModel(RemoteTexts):
    """A model behind a server; `lensbridge.connect` gives it.

    The methods take what those of `LensModel` take and give the same results, on the CPU. What is
    a function there has to be data here: interventions in place of hooks, declared metrics
    (`lensbridge.experiments`) in place of functions of logits.

    Args:
        connection: to the server.

    Attributes:
        cfg: sizes and choices of the model.
        vocabulary: the names of its points.
        limits: how much one request may ask for.
        description: all that the server says of the model.
    """

    def __repr__(self) -> str:
        cfg = self.cfg
        return (
            f"RemoteModel({cfg.model_name} at {self.connection.url}: {cfg.original_architecture}, "
            f"{cfg.n_layers} layers, d_model {cfg.d_model})"
        )

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- runs --------------------------------------------------------------------------------

    def forward(self, input: Any = None, return_type: Any = "logits", **options: Any) -> Any:
        """Run the model; see `LensModel.forward`."""
        return self._call("forward", input=input, return_type=return_type, **options)

    __call__ = forward

    def run_with_cache(
        self,
        input: Any = None,
        names_filter: Any = None,
        device: torch.device | str | None = None,
        *,
        return_cache_object: bool = True,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Run the model and keep activations; see `LensModel.run_with_cache`.

        Args:
            input: as in `forward`.
            names_filter: what to keep. A function of names is called here.
            device: where the activations come to; None: the CPU.
            return_cache_object: False gives a plain dictionary.
            options: others of `LensModel.run_with_cache`, but for `detach` and `max_bytes`.
        """
        options["names_filter"] = self._filter(names_filter)
        result, cache = self._call("run_with_cache", input=input, **options)
        cache = cache if device is None else cache.to(device)
        return result, cache if return_cache_object else dict(cache)

    def run_with_interventions(self, input: Any, interventions: Any, **options: Any) -> Any:
        """Run the model with interventions; see `LensModel.run_with_interventions`."""
        given = _interventions(interventions)
        return self._call("run_with_interventions", input=input, interventions=given, **options)

    @contextmanager
    def intervene(self, interventions: Any) -> Iterator[RemoteModel]:
        """Interventions in every request inside the context; see `LensModel.intervene`."""
        given = (*self._within.get(), *_interventions(interventions))
        token = self._within.set(given)
        try:
            yield self
        finally:
            self._within.reset(token)

    def run(self, experiment: Experiment, *, progress: Progress = False) -> ExperimentResult:
        """Run an experiment; see `LensModel.run`.

        Args:
            experiment: what is run and measured.
            progress: how far a sweep or a generation is.
        """
        if not isinstance(experiment, Experiment):
            raise InputError(
                f"run takes a lensbridge.Experiment, not a {type(experiment).__name__}."
            )
        if self._within.get():
            raise InputError(
                "An experiment has interventions=... of its own: run it outside of intervene()."
            )
        found = self._reply("run", progress, {"experiment": experiment})
        return ExperimentResult.from_bytes(found)

    def sweep(
        self,
        base: Any,
        cells: Any,
        metric: Any,
        *,
        verbose: bool = False,
        progress: Progress = False,
        **options: Any,
    ) -> Any:
        """Run an input once for each cell; see `LensModel.sweep`.

        Args:
            base: the input that is run.
            cells: interventions, `Cell`s, or tuples (site, slice, value).
            metric: a declared metric, or several by name.
            verbose: show a progress bar.
            progress: the same, or a function that is told how far the sweep is.
            options: `reduce`, `baseline`, `exact` and `max_batch_tokens`.
        """
        if isinstance(cells, Mapping):
            sent: Any = {str(name): _as_cell(one) for name, one in cells.items()}
        else:
            sent = [_as_cell(one) for one in cells]
        _require_metrics(metric)
        given = {"base": base, "cells": sent, "metric": metric, **options}
        return self._call("sweep", progress or verbose, **given)

    def gradients(
        self,
        input: Any,
        names_filter: Any,
        of: Any = "loss",
        *,
        at: Any = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Any:
        """Gradients of a number at some points; see `LensModel.gradients`.

        Args:
            input: as in `forward`.
            names_filter: at which points.
            of: "loss", or a declared metric.
            at: is of a function of activations, which cannot be sent.
            device: where the gradients come to; None: the CPU.
            options: others of `LensModel.gradients`.
        """
        if at is not None:
            raise UnsupportedError(f"at=... is of a function of activations: {A_FUNCTION}.")
        if of != "loss":
            _require_metrics(of)
        points = self._filter(names_filter)
        found = self._call("gradients", input=input, names_filter=points, of=of, **options)
        if device is None:
            return found
        moved = [one.to(device) for one in found]
        return type(found)(*moved)

    def plan(self, input: Any, names_filter: Any = None, **options: Any) -> Any:
        """What `run_with_cache` would take, without running the model; see `LensModel.plan`."""
        options["names_filter"] = self._filter(names_filter)
        return self._call("plan", input=input, **options)

    # --- text --------------------------------------------------------------------------------

    def generate(
        self, input: Any = None, max_new_tokens: int = 10, *, verbose: bool = False, **options: Any
    ) -> Any:
        """Continue an input; see `LensModel.generate`.

        Sampling draws from this process's random numbers: after `torch.manual_seed` it gives what a
        model on the CPU here gives.
        """
        given = {"input": input, "max_new_tokens": max_new_tokens, **self._sampled(options)}
        device = given.pop("device", None)
        value, state = self._call("generate", verbose, **given)
        if state is not None:
            torch.set_rng_state(state)
        if device is None or not given.get("return_cache"):
            return value
        found, cache = value
        return found, cache.to(device)

    def stream(
        self, input: Any, max_new_tokens: int = 10, *, skip_prompt: bool = True, **options: Any
    ) -> Iterator[str]:
        """Generate text and give it piece by piece, as it comes; see `LensModel.stream`.

        An iterator that is closed early ends the generation on the server.
        """
        given = {"input": input, "max_new_tokens": max_new_tokens, **self._sampled(options)}
        request = self._request("generate", {**given, "skip_prompt": skip_prompt})
        return self._pieces(request)

    def _pieces(self, request: Message) -> Iterator[str]:
        for one in self.connection.events("generate", request):
            if isinstance(one, bytes):
                _, state = self._value(one)
                if state is not None:
                    torch.set_rng_state(state)
            elif one.get("event") == "text":
                yield str(one["text"])

    def _sampled(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of `generate`, with the state of the random numbers if any are drawn."""
        given = dict(options)
        if "names_filter" in given:
            given["names_filter"] = self._filter(given["names_filter"])
        if "interventions" in given:
            given["interventions"] = _interventions(given["interventions"])
        if given.get("do_sample", True) and given.get("temperature", 1.0) != 0:
            given["random_state"] = torch.get_rng_state()
        return given

    # --- what only a model in this process has -----------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Say what a server has in place of another attribute of `LensModel`."""
        from lensbridge.model import LensModel

        if name in _OF_HOOKS:
            return _refuse_hooks
        if not name.startswith("_") and hasattr(LensModel, name):
            raise UnsupportedError(
                f"A model on a server has no {name}: its weights and modules stay there. It has "
                "forward, run_with_cache, run_with_interventions, run, sweep, gradients, generate, "
                "stream, plan and the methods of text and tokens."
            )
        raise AttributeError(f"RemoteModel has no attribute {name!r}.")


def _refuse_hooks(*given: Any, **options: Any) -> Any:
    raise UnsupportedError(f"{A_FUNCTION} (lensbridge.interventions).")


def _as_cell(given: Any) -> Any:
    """A cell of a sweep; of a cache in a tuple only the activation that it writes is sent."""
    if isinstance(given, Cell | Intervention) or not isinstance(given, list | tuple):
        return given
    if is_several(given):
        return [_as_cell(one) for one in given]
    return Cell(*given) if len(given) == 3 else given


def _require_metrics(given: Any) -> None:
    """Refuse functions of logits.

    Raises:
        UnsupportedError: one is no declared metric.
    """
    several = given.values() if isinstance(given, Mapping) else [given]
    if not all(isinstance(one, Metric) for one in several):
        raise UnsupportedError(
            "A metric that is a function would have to run on the server; use one of "
            "lensbridge.experiments (LogitDiff, LogProb, KL, Loss...)."
        )


def _interventions(given: Any) -> list[Intervention]:
    """Interventions as a list.

    Raises:
        UnsupportedError: a function.
        InputError: something else that is none.
    """
    several = [given] if isinstance(given, Intervention) or callable(given) else list(given)
    for one in several:
        if callable(one) and not isinstance(one, Intervention):
            raise UnsupportedError(f"{A_FUNCTION} (lensbridge.interventions).")
        if not isinstance(one, Intervention):
            raise InputError(f"{one!r:.80} is no intervention of lensbridge.interventions.")
    return several

"""Answers: requests that the model answers, one function for each operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

import torch

from lensbridge.errors import InputError, LensbridgeError, LimitError
from lensbridge.experiments import Experiment
from lensbridge.interventions.intervention import Intervention
from lensbridge.metrics import Metric
from lensbridge.model import LensModel
from lensbridge.remote.limits import Limits
from lensbridge.remote.message import Message
from lensbridge.remote.operations import OF_TEXT, check_arguments
from lensbridge.remote.packing import packed, unpacked
from lensbridge.serve.api.checks import Checks
from lensbridge.serve.api.pieces import Pieces

Told = Callable[[dict[str, Any]], None]
"""Called with events on the way."""


@dataclass
class Answers:
    """A model that answers requests, on the thread that it is called on.

    Args:
        model: the model.
        limits: how much a request may ask for.
    """

    model: LensModel
    limits: Limits
    checks: Checks = field(init=False)

    def __post_init__(self) -> None:
        self.checks = Checks(self.model, self.limits)

    def answer(self, operation: str, request: Message, told: Told) -> bytes:
        """The bytes of a reply.

        Raises:
            LensbridgeError: what is wrong with the request.
            TypeError: arguments that the operation does not take.
        """
        given = unpacked(request)
        check_arguments(operation, given)
        try:
            return self._answer(operation, given, told)
        except (LensbridgeError, TypeError):
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise LimitError(
                "The memory of the server does not suffice for this request. Ask for less at a "
                "time."
            ) from error
        except Exception as error:  # what torch says of values that do not fit each other
            getLogger(__name__).warning("A request could not be run.", exc_info=error)
            why = str(error).strip().partition("\n")[0][:300]
            raise InputError(
                f"The model cannot run this request ({type(error).__name__}: {why})."
            ) from error

    def _answer(self, operation: str, given: dict[str, Any], told: Told) -> bytes:
        within = _interventions(given.pop("within", None))
        grad = operation in ("gradients", "run", "plan") or bool(given.get("incl_bwd"))
        acting = self.model.intervene(within) if within else nullcontext()
        with torch.set_grad_enabled(grad), acting:
            found = getattr(self, f"_{operation}")(given, told)
        return found if isinstance(found, bytes) else packed({"value": found}).to_bytes()

    def _forward(self, given: dict[str, Any], told: Told) -> Any:
        self.checks.run({"names_filter": [], **given})
        return self.model.forward(**given)

    def _run_with_cache(self, given: dict[str, Any], told: Told) -> Any:
        self.checks.run(given)
        return self.model.run_with_cache(**given)

    def _run_with_interventions(self, given: dict[str, Any], told: Told) -> Any:
        _interventions(given.get("interventions"))
        self.checks.run({"names_filter": [], **given})
        return self.model.run_with_interventions(**given)

    def _plan(self, given: dict[str, Any], told: Told) -> Any:
        self.checks.tokens(given.get("input"), given)
        return self.model.plan(**given)

    def _gradients(self, given: dict[str, Any], told: Told) -> Any:
        of = given.get("of", "loss")
        if of != "loss" and not isinstance(of, Metric):
            raise InputError(f"of is 'loss' or a declared metric, not {of!r:.80}.")
        self.checks.gradients(given)
        return self.model.gradients(**given)

    def _sweep(self, given: dict[str, Any], told: Told) -> Any:
        cells = given.get("cells")
        if not isinstance(cells, list | dict):
            raise InputError("cells is a list of cells, or a mapping of them by name.")
        _require_metrics(given.get("metric"))
        self.checks.sweep(given.get("base"), len(cells), {})
        return self.model.sweep(**given)

    def _generate(self, given: dict[str, Any], told: Told) -> Any:
        _interventions(given.get("interventions"))
        shape = self.checks.generate(given.get("input"), given)
        state, skip = given.pop("random_state", None), given.pop("skip_prompt", None)
        if state is not None:
            _set_random_state(state)
        if skip is not None:
            given["streamer"] = self._pieces(shape, skip, told)
        value = self.model.generate(**given, verbose=False)
        return value, None if state is None else torch.get_rng_state()

    def _pieces(self, shape: Any, skip_prompt: bool, told: Told) -> Pieces:
        if shape is None or shape[0] != 1:
            raise InputError("stream() takes one text, or one row of ids, at a time.")

        def piece(text: str) -> None:
            told({"event": "text", "text": text})

        return Pieces(self.model.tokens.need(), skip_prompt, piece)

    def _run(self, given: dict[str, Any], told: Told) -> bytes:
        experiment = given.get("experiment")
        if not isinstance(experiment, Experiment):
            raise InputError("run takes an experiment.")
        self.checks.experiment(experiment)
        return self.model.run(experiment).to_bytes()

    def _tokens(self, given: dict[str, Any], told: Told) -> Any:
        method, arguments = given.get("method"), given.get("arguments")
        if method not in OF_TEXT or not isinstance(arguments, Mapping):
            raise InputError(
                f"tokens takes a method ({', '.join(OF_TEXT)}) and its arguments by name."
            )
        self.checks.check_text(arguments.get("input", arguments.get("string")))
        return getattr(self.model, method)(**arguments)


def _set_random_state(state: Any) -> None:
    """Go on with the random numbers of a client.

    Raises:
        InputError: these are no random numbers of torch.
    """
    try:
        torch.set_rng_state(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"random_state is no state of torch's random numbers: {error}") from error


def _interventions(given: Any) -> list[Intervention]:
    """Interventions as a list.

    Raises:
        InputError: they are none.
    """
    several = [] if given is None else [given] if isinstance(given, Intervention) else given
    right = isinstance(several, list | tuple)
    if not right or not all(isinstance(one, Intervention) for one in several):
        raise InputError(f"interventions are those of lensbridge.interventions, not {given!r:.80}.")
    return list(several)


def _require_metrics(given: Any) -> None:
    several = list(given.values()) if isinstance(given, Mapping) else [given]
    if not several or not all(isinstance(one, Metric) for one in several):
        raise InputError(
            f"metric is a declared metric of lensbridge.experiments, or several by name; not "
            f"{given!r:.80}."
        )

"""Checks: what a request would take, told before the model is run, against the limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError, LimitError
from lensbridge.experiments import Experiment
from lensbridge.inputs.prompts import Encoded
from lensbridge.model import LensModel
from lensbridge.plans.plan import Plan
from lensbridge.remote.limits import Limits
from lensbridge.remote.operations import check_arguments
from lensbridge.viz.numbers import bytes_as_text

_BYTES_OF_A_TOKEN = 64
"""Few tokens of any vocabulary stand for more text than that."""

_MOST_PLANS = 512

_OF_TEXT = ("prepend_bos", "padding_side", "add_generation_prompt")
_KEPT = (
    *("names_filter", "dtype", "pos_slice", "incl_bwd", "remove_batch_dim", "return_type", "count"),
    *("start_at_layer", "stop_at_layer"),
)


@dataclass
class Checks:
    """The limits of a server, held against its requests.

    Args:
        model: the model; it is not run.
        limits: how much a request may ask for.
    """

    model: LensModel
    limits: Limits
    _plans: dict[Any, Plan] = field(default_factory=dict)

    def run(self, given: Mapping[str, Any]) -> None:
        """Check a run, with or without a cache: its tokens, and what its plan says.

        Raises:
            LimitError: it is larger than is allowed, with both numbers.
        """
        shape = self.tokens(given.get("input"), given)
        self._room(self.plan(shape, given))

    def tokens(
        self, input: Any, given: Mapping[str, Any], new: int = 0, rows: int = 1
    ) -> tuple[int, int] | None:
        """Check the tokens of an input, with those that are added to each row.

        Args:
            input: as for `forward`.
            given: the arguments of the request.
            new: tokens that are added to each row.
            rows: how often each row is run.

        Returns:
            The shape `[batch, pos]` of its ids; None where it is something else than ids.

        Raises:
            LimitError: there are too many.
        """
        self.check_text(input)
        names = (*_OF_TEXT, "attention_mask", "inputs_embeds")
        options = {name: given[name] for name in names if given.get(name) is not None}
        if given.get("start_at_layer") is not None and isinstance(input, Tensor):
            self._check_count(input.shape[:2])
            return None
        prepared = self.model.prepare(input, **options)
        held = prepared.tokens if prepared.tokens is not None else prepared.embeds
        if held is None:
            return None
        batch, width = held.shape[:2]
        self._check_count((batch * rows, width + new))
        plain = not isinstance(input, Mapping) and "attention_mask" not in options
        return (batch, width) if prepared.tokens is not None and plain else None

    def _check_count(self, shape: Iterable[int]) -> None:
        rows, width = shape
        if rows * width > self.limits.max_tokens:
            raise LimitError(
                f"The request has {rows * width} tokens ({rows} rows of {width}, padding and new "
                f"ones included), and the server allows {self.limits.max_tokens}. Send fewer or "
                "shorter texts at a time, or start it with a larger max_tokens."
            )

    def check_text(self, given: Any) -> None:
        """Refuse text that is too long before it is made into padded rows of ids."""
        texts = [given] if isinstance(given, str) else given
        if isinstance(given, Encoded) or not isinstance(texts, list | tuple) or not texts:
            return
        longest = max(map(_length, texts))
        most = _BYTES_OF_A_TOKEN * self.limits.max_tokens
        if longest * len(texts) > most:
            raise LimitError(
                f"The longest of {len(texts)} texts has {longest} characters, too many for the "
                f"{self.limits.max_tokens} tokens that the server allows. Send fewer or shorter "
                "texts at a time."
            )

    # --- plans -------------------------------------------------------------------------------

    def plan(self, shape: tuple[int, int] | None, given: Mapping[str, Any]) -> Plan:
        """What a run takes. Plans of the same shape and points are made once.

        Args:
            shape: of the ids; None: the input itself is planned.
            given: the arguments of the run.
        """
        kept = {name: given[name] for name in _KEPT if given.get(name) is not None}
        if "return_type" in given:
            kept["return_type"] = given["return_type"]
        if shape is None:
            rest = {k: v for k, v in given.items() if k not in (*_KEPT, "interventions", "input")}
            return self.model.plan(given.get("input"), **kept, **rest)
        key = (shape, repr(kept), torch.is_grad_enabled())
        if key not in self._plans:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            labels: dict[str, Any] = {}
            if given.get("labels") is not None:
                labels["labels"] = torch.zeros(shape).long()
            self._plans[key] = self.model.plan(shape, **kept, **labels)
        return self._plans[key]

    def _room(self, plan: Plan, reply: int = 0) -> None:
        """Check what a run holds at its peak, and what comes back.

        Raises:
            LimitError: one is larger than is allowed.
        """
        peak = max(plan.peak.values(), default=0)
        back = plan.total + plan.result + reply
        pairs = (
            (back, self.limits.max_reply, "come back", "max_reply"),
            (peak, self.limits.max_run, "be held while it runs", "max_run"),
        )
        for size, most, what, name in pairs:
            if size > most:
                raise LimitError(
                    f"The plan of this run says that {bytes_as_text(size)} would {what}, and the "
                    f"server allows {bytes_as_text(most)}. Ask for fewer points, positions or "
                    f"examples (remote.plan lists what takes how much), or start it with a larger "
                    f"{name}."
                )

    # --- other operations --------------------------------------------------------------------

    def sweep(self, base: Any, cells: int, given: Mapping[str, Any]) -> None:
        """Check a sweep: its cells, their tokens, and the plan of one run.

        Raises:
            LimitError: it is larger than is allowed.
        """
        limits = self.limits
        if cells > limits.max_cells:
            raise LimitError(
                f"The sweep has {cells} cells, and the server allows {limits.max_cells}. Send them "
                "in parts, or start it with a larger max_cells."
            )
        shape = self.tokens(base, given)
        plan = self.plan(shape, {"input": base, "names_filter": [], **_texts(given)})
        self._room(plan)
        count = plan.batch or 1
        tokens = cells * (shape[0] * shape[1] if shape else count)
        if tokens > limits.max_sweep_tokens:
            raise LimitError(
                f"The sweep runs {cells} cells of {tokens // cells} tokens, {tokens} in all, and "
                f"the server allows {limits.max_sweep_tokens}. Send the cells in parts, or start "
                "it with a larger max_sweep_tokens."
            )

    def gradients(self, given: Mapping[str, Any]) -> None:
        """Check a run forward and back.

        Raises:
            LimitError: it is larger than is allowed.
        """
        shape = self.tokens(given.get("input"), given)
        names = ("input", "names_filter", "dtype", "pos_slice", "count", *_OF_TEXT)
        plan = self.plan(shape, {name: given[name] for name in names if name in given})
        self._room(plan, plan.total if given.get("return_activations") else 0)

    def generate(self, input: Any, given: Mapping[str, Any]) -> tuple[int, int] | None:
        """Check what is generated: its tokens, beams included, and the activations of a cache.

        Returns:
            The shape of the ids of the input; None where it is something else.

        Raises:
            LimitError: it is larger than is allowed.
        """
        new = given.get("max_new_tokens", 10)
        if not isinstance(new, int) or isinstance(new, bool) or new < 1:
            raise InputError(f"max_new_tokens is a whole number from 1 on, not {new!r}.")
        if new > self.limits.max_new_tokens:
            raise LimitError(
                f"max_new_tokens={new}, and the server allows {self.limits.max_new_tokens}."
            )
        beams = [given.get(one) or 1 for one in ("num_beams", "num_return_sequences")]
        if not all(isinstance(one, int) and one > 0 for one in beams):
            raise InputError("num_beams and num_return_sequences are whole numbers from 1 on.")
        shape = self.tokens(input, given, new, max(beams))
        if given.get("return_cache") and shape is not None:
            whole = (shape[0], shape[1] + new)
            kept = {"names_filter": given.get("names_filter"), "return_type": None}
            self._room(self.plan(whole, kept))
        return shape

    def experiment(self, asked: Experiment) -> None:
        """Check everything that an experiment asks for.

        Raises:
            LimitError: one of its runs is larger than is allowed.
        """
        text = {} if asked.prepend_bos is None else {"prepend_bos": asked.prepend_bos}
        given = {"input": asked.inputs, "pos_slice": asked.pos_slice, **text}
        shape, gradients = self.tokens(asked.inputs, text), 0
        if asked.gradients is not None:
            each = self.plan(shape, {**given, "names_filter": asked.gradients}).total
            gradients = each * len(asked.metrics)
        self._room(self.plan(shape, {**given, "names_filter": asked.points or []}), gradients)
        if asked.sweep is not None:
            self.sweep(asked.inputs, len(asked.sweep), text)
        if asked.generate is not None:
            check_arguments("generate", asked.generate)
            self.generate(asked.inputs, {**text, **asked.generate})


def _length(given: Any) -> int:
    """How long an example is: characters of text, of all messages of a chat, or ids."""
    if isinstance(given, str):
        return len(given)
    if isinstance(given, Mapping):
        return sum(map(_length, given.values()))
    return sum(map(_length, given)) if isinstance(given, list | tuple) else 1


def _texts(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in _OF_TEXT if given.get(name) is not None}

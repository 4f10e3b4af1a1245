"""What listens in a run, as steps of a program: interventions and readers, and no functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensbridge.engines.vllm.program import Act
from lensbridge.engines.vllm.sites import NO_HEAD_OF_ITS_OWN
from lensbridge.errors import EditError, UnsupportedError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback
from lensbridge.interventions.callbacks import callbacks_of
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.plan import Plan

_REASONS = {
    "grad": "vLLM computes no gradients",
    "splice": "a sparse autoencoder is not sent to vLLM's workers",
}


@dataclass(frozen=True)
class Reading:
    """A callback that reads, and the label under which the worker keeps its value."""

    callback: Callback
    label: str


@dataclass(frozen=True)
class Acting:
    """Steps, and who reads what they keep.

    Args:
        acts: the steps.
        readings: the callbacks that read, in their order.
    """

    acts: tuple[Act, ...]
    readings: tuple[Reading, ...]

    @classmethod
    def of(cls, callbacks: Iterable[Callback]) -> Acting:
        """The steps of callbacks.

        Raises:
            UnsupportedError: a callback is a function, or needs gradients.
        """
        acts, readings = [], []
        for number, one in enumerate(callbacks):
            if one.kind == "read":
                readings.append(Reading(one, str(number)))
                acts.append(Act(one.name, label=str(number)))
            else:
                acts.append(_edit(one))
            one.fired += 1
        return cls(tuple(acts), tuple(readings))

    def show(self, values: dict[str, Tensor]) -> None:
        """Give each reader its value. Shapes: `[batch, pos, ...]` by label."""
        for one in self.readings:
            one.callback.fn(values[one.label])


def _edit(callback: Callback) -> Act:
    plan: Any = getattr(callback.fn, "__self__", None)
    if callback.kind != "edit" or not isinstance(plan, Plan):
        reason = _REASONS.get(
            callback.kind, "a function would have to run in vLLM's workers; use an intervention"
        )
        raise UnsupportedError(
            f"The vLLM engine cannot do what was asked at {callback.name}: {reason}. It has "
            "readers and the interventions of lensbridge.interventions; for all else load the "
            "model with lensbridge.load(name)."
        )
    _check(plan)
    return Act(plan.name, plan.intervention.at(site=plan.name))


def own_acts(
    model: HookedModel, given: Sequence[Intervention], prepared: Any, new: int
) -> list[Act]:
    """The interventions of one request alone, checked against it.

    Args:
        model: the model.
        given: the interventions.
        prepared: the request as an input of its own.
        new: how many columns it generates.
    """
    acts = []
    for one in callbacks_of(model, given):
        if one.check is not None:
            one.check(prepared, new)
        act = _edit(one)
        acts.append(Act(act.name, act.intervention, alone=True))
    return acts


def _check(plan: Plan) -> None:
    """Refuse what vLLM's requests cannot do.

    Raises:
        EditError: a point that can only be read.
        UnsupportedError: an intervention that takes values of other examples of its run.
    """
    one = plan.intervention
    if plan.name == "hook_logits":
        raise EditError(f"hook_logits can be read but not edited: {NO_HEAD_OF_ITS_OWN}.")
    if one.mixes_examples:
        raise UnsupportedError(
            f"{plan.what} takes values of other examples of the run, and each of vLLM's requests "
            "is run for itself. Give a source: a cache of the other examples."
        )


def check_rows(acts: Iterable[Act], rows: int) -> None:
    """Refuse interventions whose outcome depends on the shape of the batch.

    Raises:
        UnsupportedError: there are several rows.
    """
    for one in acts:
        edit = one.intervention
        if rows == 1 or edit is None or one.alone:
            continue
        draws = edit.origin is None and not edit.at(examples=None).works_by_row
        if draws:  # rows with values of their own are told apart in the workers
            raise UnsupportedError(
                f"{type(edit).__name__} at {one.name} draws its numbers for a whole batch, and "
                "each of vLLM's requests is run for itself. Run the texts one by one."
            )

"""Runs with interventions."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, overload

from torch import Tensor

from lensbridge.hooked_model import HookedModel, OneTensor, Result, ReturnType
from lensbridge.interventions.callbacks import acting, callbacks_of
from lensbridge.interventions.intervention import Intervention

Interventions: TypeAlias = Intervention | Iterable[Intervention]
"""One intervention or several; they act in the order given."""


@contextmanager
def edited(model: HookedModel, interventions: Interventions) -> Iterator[None]:
    """Interventions in every run of a model inside the context; see `model.intervene`."""
    with model.listening(callbacks_of(model, interventions)):
        yield


@overload
def run_edited(
    model: HookedModel,
    input: Any,
    interventions: Interventions,
    *,
    return_type: OneTensor = "logits",
    **forward: Any,
) -> Tensor: ...
@overload
def run_edited(
    model: HookedModel,
    input: Any,
    interventions: Interventions,
    *,
    return_type: ReturnType,
    **forward: Any,
) -> Result: ...
def run_edited(
    model: HookedModel, input: Any, interventions: Interventions, **forward: Any
) -> Result:
    """One run of a model with interventions; see `model.run_with_interventions`."""
    with edited(model, acting(interventions)):
        return model.run_with_hooks(input, **forward)

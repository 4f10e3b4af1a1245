"""Metrics bound to a run of a model: where its tokens, its padding and its clean run come from."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared
from lensbridge.metrics.metric import Metric, MetricRun


def run_of(
    model: HookedModel, prepared: Prepared, clean: Callable[[], Tensor] | None = None
) -> MetricRun:
    """What metrics have to know of a run.

    Args:
        model: the model.
        prepared: its input.
        clean: gives the logits of the run without edits.
    """
    if model.native.is_encoder_decoder:
        names = ("decoder_input_ids", "decoder_attention_mask")
        ids, mask = (prepared.kwargs.get(name) for name in names)
        return MetricRun(model.tokens, ids, mask, clean)
    return MetricRun(model.tokens, prepared.tokens, prepared.mask, clean)


def bound(model: HookedModel, input: Any, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by name, with the declared ones bound to runs of an input; functions stay.

    The run without edits, with which `KL()` compares, is made when it is first asked for.

    Args:
        model: the model.
        input: as in `forward`.
        metrics: declared metrics, and functions of logits.

    Raises:
        TokenError: a text is not one token.
    """
    if not any(isinstance(one, Metric) for one in metrics.values()):
        return dict(metrics)

    @cache
    def clean() -> Tensor:
        with torch.no_grad():
            return model.forward(input)

    run = run_of(model, model.prepare(input), clean)
    return {
        name: one.bound(run) if isinstance(one, Metric) else one for name, one in metrics.items()
    }

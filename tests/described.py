"""Tiny random models of a built-in description behind the lens."""

from functools import cache
from typing import Any

import torch
from tiny_models import Shape, build
from torch import Tensor, nn

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.model import LensModel
from lensbridge.plugins import registry


def described(name: str) -> Any:
    """The built-in architecture of a name."""
    found = [claim.architecture for claim in registry().claims]
    return next(one for one in found if one.name == name)


def tiny(name: str, dtype: torch.dtype = torch.float64, **fields: Any) -> LensModel:
    """A tiny random model that a built-in architecture describes."""
    architecture = described(name)
    model = tiny_model(architecture, dtype=dtype, **fields)
    return lensbridge.load(model, architecture=architecture)


@cache
def of_class(name: str, dtype: torch.dtype = torch.float32, **fields: Any) -> LensModel:
    """A tiny random model of a transformers class that has a built-in description."""
    found = [claim.architecture for claim in registry().claims]
    model = tiny_model(
        next(one for one in found if name in one.classes), name, dtype=dtype, **fields
    )
    for buffer, value in model.named_buffers():
        if buffer == "final_logits_bias":
            value.normal_()  # which is zeros in a new model
    return lensbridge.load(model)


def gpt2(**shape: Any) -> tuple[Any, LensModel]:
    """A bare tiny GPT-2, and the same behind the lens."""
    model = build(Shape("gpt2", dtype=torch.float64, **shape))
    return model, lensbridge.load(model)


def log_probs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Of the bare model."""
    with torch.no_grad():
        return model(**inputs).logits.log_softmax(-1)

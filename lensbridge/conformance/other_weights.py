"""A copy of a model with other weights, on which checks show more.

A new model has gains of one, biases of zero and scales without effect: a scale that a description
leaves out would not show, nor would two swapped norms. A copy has random values in their place.
"""

from collections.abc import Iterator
from copy import deepcopy
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

COPY_LIMIT = 200_000_000
"""The number of parameters above which only those that are constant are copied and changed."""


def constants_of(model: nn.Module) -> list[str]:
    """Names of parameters with one value in all places, which hide what they do.

    These are ones, zeros, and any other value that an initialization repeats; a single number
    counts if it is one or zero.
    """
    return [name for name, one in model.named_parameters() if _is_constant(one)]


def with_other_weights(model: nn.Module) -> nn.Module | None:
    """A copy in float32 with random weights of ordinary size; None if it cannot be copied.

    Of a large model the constant parameters are random, and the others are the model's own tensors.
    A model whose modules have functions of their own in the place of `forward` is not copied: a
    copy of such a function may still run the modules of the original.
    """
    if any(_runs_a_closure(module) for module in model.modules()):
        return None
    large = sum(parameter.numel() for parameter in model.parameters()) > COPY_LIMIT
    kept = [one for one in model.parameters() if large and not _is_constant(one)]
    try:
        copy = deepcopy(model, {id(one): one for one in kept}).eval()
    except Exception:  # a module of another library may refuse in any way
        return None
    own = {id(one) for one in kept}
    changed = [one for one in copy.parameters() if id(one) not in own]
    if not large:
        copy.float()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in changed:
            if parameter.requires_grad and parameter.is_floating_point():  # no table of sines
                parameter.copy_(_random(parameter.cpu(), generator))
        for buffer in _ones(copy):
            buffer.mul_(0.9)
    return copy


def _is_constant(parameter: Tensor) -> bool:
    if not parameter.is_floating_point() or parameter.is_meta or not parameter.numel():
        return False
    if type(parameter) is not nn.Parameter:  # in a form of another library
        return False
    flat = parameter.detach().flatten()
    first = flat[0]
    if flat.numel() == 1:
        return float(first) in (0.0, 1.0)
    return bool((flat[:64] == first).all()) and bool((flat == first).all())


def _runs_a_closure(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return isinstance(forward, FunctionType) or (
        isinstance(forward, MethodType) and forward.__self__ is not module
    )


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator)
    if like.ndim < 2:
        return like + 0.2 * noise
    return noise / max(like.shape[-1], 1) ** 0.5


def _ones(model: nn.Module) -> Iterator[Tensor]:
    for buffer in model.buffers():
        if buffer.numel() == 1 and buffer.is_floating_point() and float(buffer) == 1.0:
            yield buffer

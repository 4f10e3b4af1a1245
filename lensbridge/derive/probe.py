"""A copy of the model with random weights, and inputs to run it on.

A new model has gains of one, biases of zero and scales without effect, so that a missing norm or
two swapped norms would not show. Its copy gets random weights of ordinary size instead. A large
model is not copied; its trained weights show the difference.
"""

from collections.abc import Iterator
from copy import deepcopy
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.native.calling import is_plain
from lensbridge.native.trial import Trial
from lensbridge.native.wrappers import unwrapped

COPY_LIMIT = 200_000_000
"""The number of parameters above which a model is traced without a copy."""

BATCH = 2
POSITIONS = 7
TARGET_POSITIONS = 5
"""Lengths of inputs: odd, and different for the two sides of an encoder-decoder."""


def probe_of(model: nn.Module) -> nn.Module:
    """The model to trace: a float32 copy with random weights, or the model itself.

    A large model is not copied, nor one whose modules have functions of their own in the place of
    `forward`: a copy of such a function may still run the modules of the original.
    """
    large = sum(parameter.numel() for parameter in model.parameters()) > COPY_LIMIT
    if large or any(_runs_a_closure(module) for module in model.modules()):
        return model
    copy = deepcopy(model).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        trained = (parameter for parameter in copy.parameters() if parameter.requires_grad)
        for parameter in trained:  # a fixed table of sines is not changed
            parameter.copy_(_random(parameter.cpu(), generator))
        for module in copy.modules():
            for buffer in _scalar_buffers(module):
                buffer.mul_(0.9)
    return copy


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


def _scalar_buffers(module: nn.Module) -> Iterator[Tensor]:
    for buffer in module.buffers(recurse=False):
        if buffer.numel() == 1 and buffer.is_floating_point() and float(buffer) == 1.0:
            yield buffer


def inputs_of(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs to try, the most likely first. They have no padding and no special tokens."""
    core: Any = model
    if is_plain(core):
        yield _plain(core)
        return
    main = str(getattr(core, "main_input_name", "input_ids"))
    sides = _sides(core, main)
    for extra in ({"use_cache": False}, {}):
        yield {**sides, **extra}
    if "decoder_input_ids" in sides:
        yield {name: value for name, value in sides.items() if name != "decoder_input_ids"}


def _plain(core: nn.Module) -> dict[str, Any]:
    """Ids for a plain module, in each argument that has to hold them."""
    trial = Trial.of(core)
    allowed = torch.arange(min(trial.vocabulary, 1000))
    generator = torch.Generator().manual_seed(1)
    picks = torch.randint(len(allowed), (BATCH, POSITIONS), generator=generator)
    return trial.inputs(allowed[picks].to(next(core.parameters()).device))


def token_table(core: Any) -> nn.Module | None:
    """The module that embeds the ids: what transformers says, or what is given them in a call."""
    try:
        named: nn.Module | None = core.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return Trial.of(core).embed
    return None if named is None else unwrapped(named)


def _sides(core: Any, main: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    config = core.config
    device = next(core.parameters()).device
    given: dict[str, Any] = {}
    if main == "input_ids":
        given[main] = _ids(core, POSITIONS, generator).to(device)
    else:
        given[main] = torch.randn(_float_shape(config, main), generator=generator).to(
            device, next(core.parameters()).dtype
        )
    if getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = _ids(core, TARGET_POSITIONS, generator).to(device)
    return given


def _ids(core: Any, length: int, generator: torch.Generator) -> Tensor:
    special = {
        value
        for name, value in core.config.to_dict().items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    vocab = _vocabulary(core)
    allowed = [i for i in range(vocab) if i not in special][:1000]
    picks = torch.randint(len(allowed), (BATCH, length), generator=generator)
    return torch.tensor(allowed)[picks]


def _vocabulary(core: Any) -> int:
    weight: Any = getattr(token_table(core), "weight", None)
    return int(core.config.get_text_config().vocab_size if weight is None else weight.shape[0])


def _float_shape(config: Any, main: str) -> tuple[int, ...]:
    if main == "input_features":
        frames = 2 * int(getattr(config, "max_source_positions", 32))
        return (BATCH, int(getattr(config, "num_mel_bins", 80)), frames)
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return (BATCH, int(getattr(vision, "num_channels", 3)), int(height), int(width))

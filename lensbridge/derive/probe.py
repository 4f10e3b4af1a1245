"""A copy of the model on which nothing is trivial, and something to run it on.

A fresh model has gains of one, biases of zero and scales that do nothing, so that a norm left out
or two norms swapped would not show. Its copy gets random weights of ordinary size instead. Trained
weights of a large model are not trivial: there the model itself is traced.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

COPY_LIMIT = 200_000_000
"""Parameters above which a model is traced as it is."""

BATCH = 2
POSITIONS = 7
TARGET_POSITIONS = 5
"""Odd, and different for the two sides of an encoder-decoder."""


def probe_of(model: nn.Module) -> nn.Module:
    """The model to trace: a float32 copy with random weights, or a large model itself."""
    if sum(parameter.numel() for parameter in model.parameters()) > COPY_LIMIT:
        return model
    copy = deepcopy(model).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        trained = (parameter for parameter in copy.parameters() if parameter.requires_grad)
        for parameter in trained:  # a table of sines that never trains stays what it is
            parameter.copy_(_random(parameter.cpu(), generator))
        for module in copy.modules():
            for buffer in _scalar_buffers(module):
                buffer.mul_(0.9)
    return copy


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
    """Inputs to try, the likeliest first. They hold no padding and no special token."""
    core: Any = model
    main = str(getattr(core, "main_input_name", "input_ids"))
    sides = _sides(core, main)
    for extra in ({"use_cache": False}, {}):
        yield {**sides, **extra}
    if "decoder_input_ids" in sides:
        yield {name: value for name, value in sides.items() if name != "decoder_input_ids"}


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
    vocab = core.get_input_embeddings().weight.shape[0]
    allowed = [i for i in range(vocab) if i not in special][:1000]
    picks = torch.randint(len(allowed), (BATCH, length), generator=generator)
    return torch.tensor(allowed)[picks]


def _float_shape(config: Any, main: str) -> tuple[int, ...]:
    if main == "input_features":
        frames = 2 * int(getattr(config, "max_source_positions", 32))
        return (BATCH, int(getattr(config, "num_mel_bins", 80)), frames)
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 32)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return (BATCH, int(getattr(vision, "num_channels", 3)), int(height), int(width))

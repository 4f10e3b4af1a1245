"""The model that is traced, and inputs to run it on."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.conformance.other_weights import COPY_LIMIT, with_other_weights
from lensbridge.native.calling import is_plain
from lensbridge.native.trial import Trial
from lensbridge.native.wrappers import unwrapped

BATCH = 2
POSITIONS = 7
TARGET_POSITIONS = 5
"""Lengths of inputs: odd, and different for the two sides of an encoder-decoder."""


def probe_of(model: nn.Module) -> nn.Module:
    """The model to trace: a copy with random weights, or the model itself.

    A large model is traced itself: its trained weights show the difference.
    """
    large = sum(parameter.numel() for parameter in model.parameters()) > COPY_LIMIT
    return model if large else with_other_weights(model) or model


def inputs_of(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs to try, the most likely first. They have no padding and no special tokens."""
    core: Any = model
    if is_plain(core):
        yield _plain(core)
        return
    main = str(core.main_input_name)
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
    if config.is_encoder_decoder:
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

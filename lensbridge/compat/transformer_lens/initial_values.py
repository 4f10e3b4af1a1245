"""Weights of new models: the numbers that TransformerLens draws for the same config and seed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.initialization import (
    calc_fan_in_and_fan_out,
    init_kaiming_normal_,
    init_kaiming_uniform_,
    init_xavier_normal_,
    init_xavier_uniform_,
)
from lensbridge.compat.transformer_lens.weights import Weights
from lensbridge.errors import InputError, suggest
from lensbridge.model import LensModel

Draw: TypeAlias = Callable[[str, Tensor, float], Tensor]
"""Fills a weight: its name, the weight, `cfg.initializer_range`."""

_ORDER = ("W_Q", "W_O", "W_K", "W_V", "W_in", "W_out", "W_gate")
"""Weights of a layer in the order in which TransformerLens draws them."""


def _gpt2(name: str, weight: Tensor, size: float) -> Tensor:
    """Normal, with `initializer_range` as standard deviation."""
    return weight.normal_(std=size)


def _mup(name: str, weight: Tensor, size: float) -> Tensor:
    """Normal, with the standard deviations of TransformerLens's muP: 1 for W_E, W_pos and W_U, and
    one over the root of what a weight reads for the others.
    """
    read, _ = calc_fan_in_and_fan_out(weight)
    return weight.normal_(std=1.0 if "embed" in name else read**-0.5)


def _scaled(fill: Callable[..., Tensor], name: str, weight: Tensor, size: float) -> Tensor:
    return fill(weight, gain=size)


MODES: Mapping[str, Draw] = {
    "gpt2": _gpt2,
    "xavier_uniform": partial(_scaled, init_xavier_uniform_),
    "xavier_normal": partial(_scaled, init_xavier_normal_),
    "kaiming_uniform": partial(_scaled, init_kaiming_uniform_),
    "kaiming_normal": partial(_scaled, init_kaiming_normal_),
    "muP": _mup,
}
"""`cfg.init_mode` -> how weights are drawn."""


def draw_weights(lens: LensModel, cfg: HookedTransformerConfig) -> None:
    """Draw every W_ of a new model in place; biases are zero and gains one.

    They come from torch's global generator, seeded with `cfg.seed` if there is one.

    Raises:
        InputError: an unknown `cfg.init_mode`, or one other than "gpt2" for a mixture of experts.
    """
    if cfg.init_mode not in MODES:
        raise InputError(
            f"init_mode is one of {', '.join(MODES)}, not {cfg.init_mode!r}."
            f"{suggest(str(cfg.init_mode), MODES)}"
        )
    if cfg.num_experts and cfg.init_mode != "gpt2":
        raise InputError(
            f"init_mode={cfg.init_mode!r} is not possible with experts, whose weights the "
            "HuggingFace model draws itself, as 'gpt2' does."
        )
    if cfg.seed is not None:
        torch.manual_seed(cfg.seed)
    weights, draw = Weights.of(lens), MODES[cfg.init_mode]
    shapes = {name: read().shape for name, read in weights.stored.items() if "W_" in name}
    with torch.no_grad():
        drawn = {
            name: draw(name, torch.empty(shapes[name], dtype=cfg.dtype), cfg.initializer_range)
            for name in sorted(shapes, key=_place)
        }
    if cfg.tie_word_embeddings:
        del drawn["unembed.W_U"]  # it is W_E
    weights.write(drawn)


def _place(name: str) -> tuple[float, str, int]:
    """Where a weight comes when they are sorted: layer, part, and place in the part."""
    steps = name.split(".")
    if steps[0] == "blocks":
        last = steps[-1].removeprefix("_")
        return int(steps[1]), ".".join(steps[2:-1]), _ORDER.index(last)
    return (float("inf"), "", 0) if steps[0] == "unembed" else (-1, "", steps[0] == "pos_embed")

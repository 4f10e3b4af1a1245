"""Initial values for weights that are stored as `[..., fan_in, fan_out]`, as W_Q and W_in are."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lensbridge.errors import InputError


def calc_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """How many numbers a weight reads, and how many it returns.

    Of two axes the first is read, of `[head, d_model, d_head]` the second; a vector reads 1 number.

    Raises:
        InputError: more than three axes, or none.
    """
    sizes = tuple(tensor.shape)
    if len(sizes) == 1:
        return 1, sizes[0]
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    if len(sizes) == 3:
        return sizes[1], sizes[0] * sizes[2]
    raise InputError(f"A weight has one to three axes, not shape {sizes}.")


def _std(param: Tensor, gain: float) -> float:
    fan_in, fan_out = calc_fan_in_and_fan_out(param)
    return gain * (2.0 / (fan_in + fan_out)) ** 0.5


@torch.no_grad()
def init_xavier_uniform_(param: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform, with the variance of Glorot and Bengio."""
    bound = 3**0.5 * _std(param, gain)
    return param.uniform_(-bound, bound)


@torch.no_grad()
def init_xavier_normal_(param: Tensor, gain: float = 1.0) -> Tensor:
    """Normal, with the variance of Glorot and Bengio."""
    return param.normal_(0.0, _std(param, gain))


def _kaiming_std(param: Tensor, a: float, nonlinearity: Any, gain: float, mode: str) -> float:
    fan_in, fan_out = calc_fan_in_and_fan_out(param)
    fan = fan_in if mode == "fan_in" else fan_out
    return gain * nn.init.calculate_gain(nonlinearity, a) / fan**0.5


Mode = Literal["fan_in", "fan_out"]


@torch.no_grad()
def init_kaiming_uniform_(
    param: Tensor,
    a: float = 0,
    nonlinearity: Any = "relu",
    gain: float = 1.0,
    mode: Mode = "fan_in",
) -> Tensor:
    """Uniform, with the variance of He et al."""
    bound = 3**0.5 * _kaiming_std(param, a, nonlinearity, gain, mode)
    return param.uniform_(-bound, bound)


@torch.no_grad()
def init_kaiming_normal_(
    param: Tensor,
    a: float = 0,
    nonlinearity: Any = "relu",
    gain: float = 1.0,
    mode: Mode = "fan_in",
) -> Tensor:
    """Normal, with the variance of He et al."""
    return param.normal_(0.0, _kaiming_std(param, a, nonlinearity, gain, mode))

"""Activation functions by the names that configs use."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_new(input: Tensor) -> Tensor:
    """GELU by the tanh formula of GPT-2."""
    inner = (2 / torch.pi) ** 0.5 * (input + 0.044715 * input**3)
    return 0.5 * input * (1 + inner.tanh())


def gelu_fast(input: Tensor) -> Tensor:
    """The same formula with its constants rounded."""
    inner = 0.7978845608 * input * (1 + 0.044715 * input * input)
    return 0.5 * input * (1 + inner.tanh())


def solu(input: Tensor) -> Tensor:
    """Each entry times its softmax over the last axis.

    Source: Elhage et al. 2022, Softmax Linear Units.
    """
    return input * F.softmax(input, dim=-1)


ACTIVATION_FN_DICT: dict[str, Callable[[Tensor], Tensor]] = {
    "solu": solu,
    "solu_ln": solu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda input: F.gelu(input, approximate="tanh"),
}
SUPPORTED_ACTIVATIONS = ACTIVATION_FN_DICT

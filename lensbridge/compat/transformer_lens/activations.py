"""Activation functions by the names that configs use."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class XIELU(nn.Module):
    """xIELU with learned slopes, which are kept as the inverse of their softplus.

    Args:
        alpha_p_init: the factor of the square of positive entries.
        alpha_n_init: the factor of the exponential part of others.
        beta_init: the slope at zero.
        eps: the largest entry whose exponential is taken.

    Source: Huang and Schlag 2024, Deriving Activation Functions Using Integration.
    """

    beta: Tensor
    eps: Tensor

    def __init__(
        self,
        alpha_p_init: float = 0.8,
        alpha_n_init: float = 0.8,
        beta_init: float = 0.5,
        eps: float = -1e-6,
    ) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.tensor(alpha_p_init).expm1().log())
        self.alpha_n = nn.Parameter(torch.tensor(alpha_n_init - beta_init).expm1().log())
        self.register_buffer("beta", torch.tensor(beta_init))
        self.register_buffer("eps", torch.tensor(eps))

    def forward(self, input: Tensor) -> Tensor:
        """The activation, of any shape."""
        positive = F.softplus(self.alpha_p) * input**2
        slope = self.beta + F.softplus(self.alpha_n)
        other = slope * (torch.minimum(input, self.eps).expm1() - input)
        return torch.where(input > 0, positive, other) + self.beta * input


def xielu(input: Tensor) -> Tensor:
    """xIELU with the slopes that `XIELU` begins with."""
    positive = 0.8 * input**2
    other = 0.8 * (input.clamp(max=-1e-6).expm1() - input)
    return torch.where(input > 0, positive, other) + 0.5 * input


ACTIVATION_FN_DICT: dict[str, Callable[[Tensor], Tensor]] = {
    "solu": solu,
    "solu_ln": solu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda input: F.gelu(input, approximate="tanh"),
    "xielu": xielu,
}
SUPPORTED_ACTIVATIONS = ACTIVATION_FN_DICT

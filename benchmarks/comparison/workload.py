"""What is run when tools are timed: GPT-2's shape, prompts, edits and a metric."""

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

LAYERS, TOKENS, EDITS = 12, 15, 32
CELLS = [(layer, (7 * layer + 5 * turn) % TOKENS) for layer in range(LAYERS) for turn in range(2)]
"""The part of a sweep that tools run whose cells all cost the same; its time counts for each."""


def gpt2(positions: int = 1024) -> Any:
    """GPT-2 small with random weights, always the same."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_positions=positions, bos_token_id=0, eos_token_id=0)).eval()


def prompts() -> tuple[Tensor, Tensor]:
    """A clean and a corrupted prompt."""
    generator = torch.Generator().manual_seed(1)
    clean, corrupted = torch.randint(0, 50257, (2, 1, TOKENS), generator=generator)
    return clean, corrupted


def places() -> list[tuple[str, int]]:
    """Where the 32 edits are, in the order of the computation."""
    return [(part, layer) for layer in range(LAYERS) for part in ("z", "mlp_out", "resid_post")][
        :EDITS
    ]


def shrink(value: Tensor) -> Tensor:
    """Each edit."""
    return value * 0.9


def metric(logits: Tensor) -> Tensor:
    """What a sweep measures."""
    return logits[..., -1, 5] - logits[..., -1, 9]

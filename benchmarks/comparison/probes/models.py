"""Tiny models and inputs for the probes."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from benchmarks.comparison.families import build, tokens

CLEAN, CORRUPTED = tokens(1, 7, seed=0), tokens(1, 7, seed=1)
TEXT = "The store and the store, the store and the store."
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
}


def gpt2() -> Any:
    """The family's model."""
    return build("gpt2")


def llama() -> Any:
    """Grouped heads."""
    return build("llama")


def bert() -> Any:
    """An encoder."""
    return _random(BertForMaskedLM(BertConfig(vocab_size=61, **SIZES)))


def t5() -> Any:
    """An encoder-decoder."""
    config = T5Config(
        vocab_size=61, d_model=24, d_kv=6, d_ff=20, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    return _random(T5ForConditionalGeneration(config))


def mamba() -> Any:
    """A state-space model."""
    return _random(
        MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=24, num_hidden_layers=2))
    )


def vit() -> Any:
    """A vision transformer."""
    return _random(ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SIZES)))


def image() -> Tensor:
    """`[batch, channel, height, width]`"""
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def metric(logits: Tensor) -> Tensor:
    """The difference of two logits behind the last position."""
    return logits[0, -1, 5] - logits[0, -1, 9]


def _random(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5, generator=generator)
    return model.eval()

"""The models that are measured: usual shapes, random weights, built offline from configs."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import lensbridge
from benchmarks import rival


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and of the batch that it reads."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocab: int = 32000
    batch: int = 1
    positions: int = 64

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, width {self.width}, {self.heads} heads, vocabulary "
            f"{self.vocab}, {self.batch} x {self.positions} tokens"
        )


@dataclass
class Specimen:
    """One model, with the other ways to run it, which have copies of their own.

    Attributes:
        name: for the table.
        hf: the bare HuggingFace model with the kernel that it chooses itself.
        ids: `[batch, pos]`
    """

    name: str
    hf: Any
    ids: Tensor

    @cached_property
    def lens(self) -> Any:
        """lensbridge on the bare model itself."""
        return lensbridge.load(self.hf)

    @cached_property
    def hf_eager(self) -> Any:
        """The bare model with eager attention, the only one that shows its patterns."""
        eager = copy.deepcopy(self.hf)
        eager.set_attn_implementation("eager")
        return eager

    @cached_property
    def lens_eager(self) -> Any:
        """lensbridge on the eager model."""
        return lensbridge.load(self.hf_eager)

    @cached_property
    def bridge(self) -> Any | None:
        """TransformerLens on a copy, or None where it is not installed."""
        return rival.build(copy.deepcopy(self.hf))

    @property
    def middle(self) -> int:
        """A layer to edit."""
        return len(self.lens.native.blocks) // 2


def gpt2(shape: Shape, name: str = "GPT-2") -> Specimen:
    """GPT-2: fused QKV, plain MLP, tied unembedding."""
    config = GPT2Config(
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        vocab_size=shape.vocab,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _specimen(name, GPT2LMHeadModel, config, shape)


def llama(shape: Shape, name: str = "Llama") -> Specimen:
    """Llama: rotary, one key/value head for three query heads where that divides, gated MLP."""
    shared = 3 if shape.heads % 3 == 0 else 2
    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // shared,
        vocab_size=shape.vocab,
        max_position_embeddings=2048,
    )
    return _specimen(name, LlamaForCausalLM, config, shape)


def _specimen(name: str, kind: Any, config: Any, shape: Shape) -> Specimen:
    torch.manual_seed(0)
    model = kind(config).eval()
    ids = torch.randint(0, shape.vocab, (shape.batch, shape.positions))
    return Specimen(name, model, ids)

"""Tiny random models of eight families, and where their modules are, written out by hand."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import tiny_models
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

LAYERS, HEADS, KV_HEADS, D_HEAD = 2, 4, 2, 6


@dataclass(frozen=True)
class Family:
    """Paths inside one layer, and what its attention is like.

    Args:
        block: the layer, with `{}` for its number.
        attn, out, values, keys: the attention, and its projections.
        middle: the name that nnsight's `source` gives the stream between attention and MLP.
        grouped: whether two query heads share a key/value head.
        fused: how q, k and v lie in one projection, if they do.
    """

    name: str
    block: str
    attn: str
    out: str
    values: str
    keys: str
    mlp: str
    adds: str
    middle: str | None
    grouped: bool = False
    fused: str | None = None

    def path(self, part: str, layer: int) -> str:
        """The path of a part of a layer in the HuggingFace model."""
        block = self.block.format(layer)
        return block if part == "block" else f"{block}.{getattr(self, part)}"

    @property
    def kv(self) -> int:
        """Key/value heads."""
        return KV_HEADS if self.grouped else HEADS

    def heads_of(self, whole: Tensor, role: str) -> Tensor:
        """k or v of each key/value head out of what the projection gives: `[b, p, n, d]`."""
        if self.fused == "blocked":
            parts = rearrange(whole, "b p (r n d) -> r b p n d", r=3, n=HEADS)
            return parts["qkv".index(role)]
        if self.fused == "interleaved":
            parts = rearrange(whole, "b p (n r d) -> r b p n d", r=3, n=HEADS)
            return parts["qkv".index(role)]
        return rearrange(whole, "b p (n d) -> b p n d", n=self.kv)


def _llama(name: str, mlp: str = "mlp", middle: str = "hidden_states_1") -> Family:
    return Family(
        name, "model.layers.{}", "self_attn", "self_attn.o_proj", "self_attn.v_proj",
        "self_attn.k_proj", mlp, "self_attn.o_proj", middle, grouped=True,
    )  # fmt: skip


FAMILIES = {
    one.name: one
    for one in (
        Family(
            "gpt2", "transformer.h.{}", "attn", "attn.c_proj", "attn.c_attn", "attn.c_attn",
            "mlp", "attn.c_proj", "hidden_states_1", fused="blocked",
        ),
        Family(
            "neox", "gpt_neox.layers.{}", "attention", "attention.dense",
            "attention.query_key_value", "attention.query_key_value", "mlp", "attention.dense",
            None, fused="interleaved",
        ),
        Family(
            "opt", "model.decoder.layers.{}", "self_attn", "self_attn.out_proj",
            "self_attn.v_proj", "self_attn.k_proj", "fc2", "self_attn.out_proj", "hidden_states_2",
        ),
        _llama("llama"),
        _llama("mistral"),
        _llama("qwen2"),
        _llama("mixtral"),
        Family(
            "gemma2", "model.layers.{}", "self_attn", "self_attn.o_proj", "self_attn.v_proj",
            "self_attn.k_proj", "mlp", "post_attention_layernorm", "hidden_states_2", grouped=True,
        ),
    )
}  # fmt: skip


def build(family: str, kernel: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """A new copy of a family's model, always with the same weights.

    Gemma 2 has eager attention always: transformers has no other for it on a CPU.
    """
    model = copy.deepcopy(_first(family, "eager" if family == "gemma2" else kernel))
    return model.to(dtype)


@cache
def _first(family: str, kernel: str) -> nn.Module:
    if family in tiny_models.FAMILIES:
        return tiny_models.build(tiny_models.Shape(family, kernel=kernel))
    kind, config = _config(family)
    config._attn_implementation = kernel
    return _random(kind(config).eval())


def _config(family: str) -> tuple[Any, Any]:
    common = {
        "vocab_size": tiny_models.VOCAB,
        "hidden_size": HEADS * D_HEAD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": tiny_models.CONTEXT,
        **tiny_models.SPECIAL,
    }
    if family == "opt":
        return OPTForCausalLM, OPTConfig(
            ffn_dim=20, word_embed_proj_dim=HEADS * D_HEAD, dropout=0.0, **common
        )
    common |= {"num_key_value_heads": KV_HEADS, "head_dim": D_HEAD, "intermediate_size": 24}
    if family == "mixtral":
        moe = {"num_local_experts": 4, "num_experts_per_tok": 2}
        return MixtralForCausalLM, MixtralConfig(**common, **moe)
    return Gemma2ForCausalLM, Gemma2Config(**common, query_pre_attn_scalar=D_HEAD, sliding_window=4)


def _random(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.normal_(0.0, 1.5 / width**0.5, generator=generator)
            if name.endswith("weight") and "norm" in name:
                parameter.add_(1.0)
    return model


def tokens(batch: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    """Random ids."""
    return tiny_models.tokens(batch, length, seed)

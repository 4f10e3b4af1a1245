"""Tiny random models of the three families, and where their modules are.

The paths are written out by hand, apart from the adapters', so that one checks the other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 61
CONTEXT = 40
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Shape:
    """What a tiny model looks like."""

    family: str
    heads: int = 4
    kv_heads: int = 2
    d_head: int = 6
    layers: int = 2
    d_mlp: int = 20
    dtype: torch.dtype = torch.float32
    kernel: str = "sdpa"

    @property
    def grouped(self) -> bool:
        return self.family in ("llama", "mistral", "qwen2")

    @property
    def kv(self) -> int:
        return self.kv_heads if self.grouped else self.heads

    @property
    def d_model(self) -> int:
        """For grouped families not d_head * heads, so that mixing the two up shows."""
        return self.heads * (self.d_head + (self.family in ("llama", "mistral")))


FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "neox", "neox_sequential")


@st.composite
def shapes(draw: st.DrawFn, families: tuple[str, ...] = FAMILIES) -> Shape:
    """Shapes of every family, with kv heads that divide the heads and odd sizes."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    return Shape(
        family=draw(st.sampled_from(families)),
        heads=kv_heads * draw(st.sampled_from([1, 2, 3])),
        kv_heads=kv_heads,
        d_head=draw(st.sampled_from([4, 6])),
        layers=draw(st.sampled_from([1, 2, 3])),
        d_mlp=draw(st.sampled_from([7, 20])),
        kernel=draw(st.sampled_from(["sdpa", "eager"])),
    )


def build(shape: Shape, seed: int = 0) -> PreTrainedModel:
    """A model of a shape with weights of order one, norms and biases included."""
    config = _config(shape)
    config._attn_implementation = shape.kernel
    model = _CLASSES[shape.family](config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.normal_(0.0, 1.5 / width**0.5, generator=generator)
            if _is_gain(name):
                parameter.add_(1.0)
    return model.to(shape.dtype)


def _is_gain(name: str) -> bool:
    return name.endswith("weight") and ("norm" in name or "ln_" in name)


_CLASSES = {
    "gpt2": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "neox": GPTNeoXForCausalLM,
    "neox_sequential": GPTNeoXForCausalLM,
}


def _config(shape: Shape) -> object:
    if shape.family == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB,
            n_embd=shape.d_model,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_positions=CONTEXT,
            n_inner=shape.d_mlp,
            scale_attn_by_inverse_layer_idx=True,
            **SPECIAL,
        )
    common = {
        "vocab_size": VOCAB,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.d_mlp,
        "max_position_embeddings": CONTEXT,
        **SPECIAL,
    }
    if not shape.grouped:
        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        parallel = shape.family == "neox"
        return GPTNeoXConfig(use_parallel_residual=parallel, rope_parameters=rope, **common)
    grouped = {**common, "num_key_value_heads": shape.kv_heads, "head_dim": shape.d_head}
    if shape.family == "mistral":
        return MistralConfig(sliding_window=4, **grouped)
    if shape.family == "qwen2":
        del grouped["head_dim"]
        width = shape.heads * shape.d_head
        return Qwen2Config(**{**grouped, "hidden_size": width})
    return LlamaConfig(attention_bias=True, mlp_bias=True, **grouped)


def tokens(batch: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    """Random ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


def left_padded(batch: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """Random ids and a mask with 0, 1, 2... padded positions on the left of each row."""
    ids = tokens(batch, length)
    mask = torch.ones_like(ids)
    for row in range(batch):
        mask[row, :row] = 0
    return ids, mask


class Layer:
    """The native modules of one layer, by role."""

    def __init__(self, model: nn.Module, family: str, index: int) -> None:
        self.family = family
        if family == "gpt2":
            block = model.transformer.h[index]
            self.ln1, self.ln2 = block.ln_1, block.ln_2
            self.attn, self.mlp = block.attn, block.mlp
            self.qkv = {"q": block.attn.c_attn, "k": block.attn.c_attn, "v": block.attn.c_attn}
            self.o = block.attn.c_proj
            self.gate, self.up, self.down = None, block.mlp.c_fc, block.mlp.c_proj
        elif family.startswith("neox"):
            block = model.gpt_neox.layers[index]
            self.ln1, self.ln2 = block.input_layernorm, block.post_attention_layernorm
            self.attn, self.mlp = block.attention, block.mlp
            self.qkv = dict.fromkeys("qkv", block.attention.query_key_value)
            self.o = block.attention.dense
            self.gate, self.up = None, block.mlp.dense_h_to_4h
            self.down = block.mlp.dense_4h_to_h
        else:
            block = model.model.layers[index]
            self.ln1, self.ln2 = block.input_layernorm, block.post_attention_layernorm
            self.attn, self.mlp = block.self_attn, block.mlp
            self.qkv = {"q": self.attn.q_proj, "k": self.attn.k_proj, "v": self.attn.v_proj}
            self.o = self.attn.o_proj
            self.gate, self.up = block.mlp.gate_proj, block.mlp.up_proj
            self.down = block.mlp.down_proj
        self.block = block


def embed_of(model: nn.Module, family: str) -> nn.Module:
    """The token embedding module."""
    return model.get_input_embeddings()


def final_norm_of(model: nn.Module, family: str) -> nn.Module:
    """The final norm module."""
    if family == "gpt2":
        return model.transformer.ln_f
    return model.gpt_neox.final_layer_norm if family.startswith("neox") else model.model.norm


def split_heads(whole: Tensor, shape: Shape, role: str) -> Tensor:
    """q, k or v out of the output of the projection that holds it: `[b, p, n, d]`."""
    if shape.family == "gpt2":
        parts = rearrange(whole, "b p (r h d) -> r b p h d", r=3, h=shape.heads)
        return parts["qkv".index(role)]
    if shape.family.startswith("neox"):
        parts = rearrange(whole, "b p (h r d) -> r b p h d", r=3, h=shape.heads)
        return parts["qkv".index(role)]
    return rearrange(whole, "b p (n d) -> b p n d", d=shape.d_head)


def join_heads(whole: Tensor, share: Tensor, shape: Shape, role: str) -> Tensor:
    """The projection's output with q, k or v replaced."""
    if shape.grouped:
        return rearrange(share, "b p n d -> b p (n d)")
    parts = [share if one == role else split_heads(whole, shape, one) for one in "qkv"]
    stacked = torch.stack(parts)
    if shape.family == "gpt2":
        return rearrange(stacked, "r b p h d -> b p (r h d)")
    return rearrange(stacked, "r b p h d -> b p (h r d)")


def norm_by_hand(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Divisor, normalized value and output of a norm, from the formula."""
    eps = module.eps if isinstance(module, nn.LayerNorm) else module.variance_epsilon
    wide = x.double()
    if isinstance(module, nn.LayerNorm):
        wide = wide - wide.mean(-1, keepdim=True)
    scale = (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    normalized = wide / scale
    out = normalized * module.weight.double()
    if isinstance(module, nn.LayerNorm):
        out = out + module.bias.double()
    return scale.to(x.dtype), normalized.to(x.dtype), out.to(x.dtype)


def affine_by_hand(module: nn.Module, normalized: Tensor) -> Tensor:
    """Gain and bias of a norm on a normalized value."""
    if isinstance(module, nn.LayerNorm):
        return F.linear(normalized, torch.diag(module.weight), module.bias)
    return normalized * module.weight

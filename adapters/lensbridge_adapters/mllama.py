"""Llama 3.2 Vision: Llama's layers, and between them layers with gated attention to an image."""

from dataclasses import replace

from lensbridge.spec import Attention, Block, Norms, SplitQKV
from lensbridge_adapters.llama import BLOCK, GATED_MLP, LLAMA

# layers that no text without an image runs through
CROSS_BLOCK = Block(
    norms=Norms(pre_cross="input_layernorm", pre_mlp="post_attention_layernorm", kind="RMS"),
    cross=Attention(
        "cross_attn",
        qkv=SplitQKV(),
        out="o_proj",
        q_norm="q_norm",
        k_norm="k_norm",
        qk_norm_axes="heads_first",
        scale="tanh(cross_attn_attn_gate)",
    ),
    mlp=replace(GATED_MLP, scale="tanh(cross_attn_mlp_gate)"),
)

MLLAMA = replace(
    LLAMA,
    name="mllama",
    classes=("MllamaForCausalLM", "MllamaTextModel"),
    block=(BLOCK, CROSS_BLOCK),
)

ARCHITECTURES = (MLLAMA,)

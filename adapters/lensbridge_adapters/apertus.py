"""Apertus: norms on query and key heads, an MLP that is not gated."""

from dataclasses import replace

from lensbridge.spec import MLP, Block, Norms
from lensbridge_adapters.llama import ATTENTION, LLAMA

APERTUS = replace(
    LLAMA,
    name="apertus",
    classes=("ApertusForCausalLM", "ApertusModel"),
    block=Block(
        norms=Norms(pre_attn="attention_layernorm", pre_mlp="feedforward_layernorm", kind="RMS"),
        attn=replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", qk_norm_axes="heads_first"),
        mlp=MLP("mlp", up="up_proj", down="down_proj"),
    ),
)

ARCHITECTURES = (APERTUS,)

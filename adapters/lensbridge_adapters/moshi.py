"""Moshi's text model: Llama whose projections sit in modules of their own; fused gated MLP."""

from dataclasses import replace

from lensbridge.spec import Attention, FusedGatedMLP, SplitQKV
from lensbridge_adapters.llama import BLOCK, LLAMA

MOSHI = replace(
    LLAMA,
    name="moshi",
    classes=("MoshiForCausalLM", "MoshiModel"),
    block=replace(
        BLOCK,
        attn=Attention(
            "self_attn",
            qkv=SplitQKV("q_proj.linear", "k_proj.linear", "v_proj.linear"),
            out="o_proj.linear",
            rotary=True,
        ),
        mlp=FusedGatedMLP("mlp", gate_up="fc1", down="fc2"),
    ),
)

ARCHITECTURES = (MOSHI,)

"""MiniMax: linear and softmax attention, experts, and branches added to the norm's output."""

from dataclasses import replace

from lensbridge.spec import Block, Mixer, MoE
from lensbridge_adapters.llama import ATTENTION, LLAMA, NORMS

EXPERTS = MoE("mlp", scale="mlp_beta_factor", skip_scale="mlp_alpha_factor")
SOFTMAX = Block(
    norms=NORMS,
    attn=replace(ATTENTION, scale="full_attn_beta_factor", skip_scale="full_attn_alpha_factor"),
    mlp=EXPERTS,
    skip_norm=True,
)
LINEAR = replace(
    SOFTMAX,
    attn=None,
    mixer=Mixer(
        "self_attn",
        steps=("qkv_proj", "norm", "output_gate", "out_proj"),
        scale="linear_attn_beta_factor",
        skip_scale="linear_attn_alpha_factor",
    ),
)

MINIMAX = replace(
    LLAMA,
    name="minimax",
    classes=("MiniMaxForCausalLM", "MiniMaxModel"),
    block=(SOFTMAX, LINEAR),
)

ARCHITECTURES = (MINIMAX,)

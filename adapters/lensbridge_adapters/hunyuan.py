"""Hunyuan, dense and with experts: Llama with norms on query and key heads behind rotary."""

from dataclasses import replace

from lensbridge.spec import GatedMLP, MoE
from lensbridge_adapters.llama import BLOCK, LLAMA

# query_layernorm and key_layernorm come after rotary, so they are between hook_q and hook_rot_q
HUNYUAN_DENSE = replace(
    LLAMA,
    name="hunyuan_dense",
    classes=("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Model"),
    positions="absolute",
)

HUNYUAN_MOE = replace(
    LLAMA,
    name="hunyuan_moe",
    classes=("HunYuanMoEV1ForCausalLM", "HunYuanMoEV1Model"),
    positions="absolute",
    block=replace(
        BLOCK,
        mlp=MoE(
            "mlp",
            shared=GatedMLP("shared_mlp", gate="gate_proj", up="up_proj", down="down_proj"),
        ),
    ),
)

ARCHITECTURES = (HUNYUAN_DENSE, HUNYUAN_MOE)

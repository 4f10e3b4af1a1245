"""MiMo-V2-Flash: values are scaled; sliding layers have sinks and more key/value heads."""

from dataclasses import replace

from lensbridge.spec import Dims, MoE
from lensbridge_adapters.llama import ATTENTION, BLOCK, LLAMA

FULL = replace(ATTENTION, v_scale="attention_value_scale")
SLIDING = replace(FULL, sinks="sinks")

MIMO_V2_FLASH = replace(
    LLAMA,
    name="mimo_v2_flash",
    classes=("MiMoV2FlashForCausalLM", "MiMoV2FlashModel"),
    dims=Dims(),
    block=(
        replace(BLOCK, attn=SLIDING, mlp=MoE("mlp")),
        replace(BLOCK, attn=SLIDING),
        replace(BLOCK, attn=FULL, mlp=MoE("mlp")),
        replace(BLOCK, attn=FULL),
    ),
)

ARCHITECTURES = (MIMO_V2_FLASH,)

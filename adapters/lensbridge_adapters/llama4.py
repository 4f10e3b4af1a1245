"""Llama 4, the text model: layers with experts, one of them shared, and dense layers."""

from dataclasses import replace

from lensbridge.spec import MoE, StackedExperts
from lensbridge_adapters.llama import BLOCK, GATED_MLP, LLAMA

DENSE = replace(BLOCK, mlp=replace(GATED_MLP, path="feed_forward"))
EXPERTS = MoE(
    "feed_forward",
    router="router",
    experts=StackedExperts("experts", gate_up="gate_up_proj", layout="in_out", given="all"),
    shared=replace(GATED_MLP, path="shared_expert", overwritten=True),
)

LLAMA4_TEXT = replace(
    LLAMA,
    name="llama4_text",
    classes=("Llama4ForCausalLM", "Llama4TextModel"),
    # qk_norm comes after rotary, so it is between hook_q and hook_rot_q
    block=(replace(BLOCK, mlp=EXPERTS, flattens=True), DENSE),
)

ARCHITECTURES = (LLAMA4_TEXT,)

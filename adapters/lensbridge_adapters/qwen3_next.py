"""Qwen 3-Next and the text models of Qwen 3.5: gated delta nets, gated attention, experts."""

from dataclasses import replace

from lensbridge.spec import Block, Mixer, MoE, SplitQKV
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA, NORMS

OFFSET_NORMS = replace(NORMS, unit_offset=True)
EXPERTS = MoE("mlp", shared=replace(GATED_MLP, path="shared_expert"))

# z is gated by what the query projection holds behind each query
GATED_BLOCK = Block(
    norms=OFFSET_NORMS,
    attn=replace(
        ATTENTION, qkv=SplitQKV(gated_q=True), q_norm="q_norm", k_norm="k_norm", gated=True
    ),
    mlp=GATED_MLP,
)
DELTA_BLOCK = Block(
    norms=OFFSET_NORMS,
    mixer=Mixer("linear_attn", steps=("in_proj_qkvz", "in_proj_ba")),
    mlp=GATED_MLP,
)

QWEN3_NEXT = replace(
    LLAMA,
    name="qwen3_next",
    classes=("Qwen3NextForCausalLM", "Qwen3NextModel"),
    block=(
        replace(GATED_BLOCK, mlp=EXPERTS),
        GATED_BLOCK,
        replace(DELTA_BLOCK, mlp=EXPERTS),
        DELTA_BLOCK,
    ),
)

SPLIT_STEPS = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
SPLIT_DELTA_BLOCK = replace(DELTA_BLOCK, mixer=Mixer("linear_attn", steps=SPLIT_STEPS))

QWEN3_5 = replace(
    QWEN3_NEXT,
    name="qwen3_5",
    classes=(
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextModel",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextModel",
    ),
    block=(
        replace(GATED_BLOCK, mlp=EXPERTS),
        GATED_BLOCK,
        replace(SPLIT_DELTA_BLOCK, mlp=EXPERTS),
        SPLIT_DELTA_BLOCK,
    ),
)

ARCHITECTURES = (QWEN3_NEXT, QWEN3_5)

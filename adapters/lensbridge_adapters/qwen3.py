"""Qwen 3: Llama with a norm on each query and key head."""

from dataclasses import replace

from lensbridge_adapters.llama import ATTENTION, BLOCK, LLAMA

NORMED_HEADS = replace(ATTENTION, q_norm="q_norm", k_norm="k_norm")

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    classes=("Qwen3ForCausalLM", "Qwen3Model", "Qwen3VLTextModel"),
    block=replace(BLOCK, attn=NORMED_HEADS),
)

ARCHITECTURES = (QWEN3,)

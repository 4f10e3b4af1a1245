"""Gemma 3, the text model: Gemma 2 with a norm on each query and key head."""

from dataclasses import replace

from lensbridge_adapters.gemma2 import BLOCK, GEMMA2
from lensbridge_adapters.llama import ATTENTION

GEMMA3_TEXT = replace(
    GEMMA2,
    name="gemma3_text",
    classes=("Gemma3ForCausalLM", "Gemma3TextModel"),
    block=replace(
        BLOCK,
        attn=replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", qk_norm_axes="heads_first"),
    ),
)

ARCHITECTURES = (GEMMA3_TEXT,)

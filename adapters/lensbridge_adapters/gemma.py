"""Gemma: Llama whose norms multiply by 1 + weight; the embedding module scales its own output."""

from dataclasses import replace

from lensbridge_adapters.llama import BLOCK, LLAMA, NORMS

GEMMA = replace(
    LLAMA,
    name="gemma",
    classes=("GemmaForCausalLM", "GemmaModel"),
    block=replace(BLOCK, norms=replace(NORMS, unit_offset=True)),
)

ARCHITECTURES = (GEMMA,)

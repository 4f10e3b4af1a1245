"""gpt-oss: experts, and per head a sink that takes attention to nowhere."""

from dataclasses import replace

from lensbridge.spec import MoE
from lensbridge_adapters.llama import ATTENTION, BLOCK, LLAMA

GPT_OSS = replace(
    LLAMA,
    name="gpt_oss",
    classes=("GptOssForCausalLM", "GptOssModel"),
    block=replace(BLOCK, attn=replace(ATTENTION, sinks="sinks"), mlp=MoE("mlp", router="router")),
)

ARCHITECTURES = (GPT_OSS,)

"""OLMo: Llama whose LayerNorms have no weights."""

from dataclasses import replace

from lensbridge_adapters.llama import ATTENTION, BLOCK, LLAMA, NORMS

OLMO = replace(
    LLAMA,
    name="olmo",
    classes=("OlmoForCausalLM", "OlmoModel"),
    block=replace(
        BLOCK,
        norms=replace(NORMS, kind="LN", eps=1e-5),
        attn=replace(ATTENTION, clip="clip_qkv"),
    ),
)

ARCHITECTURES = (OLMO,)

"""Mixtral: Llama with experts. MiniMax M2, Phi-MoE vary norms, Aria and Solar share experts."""

from dataclasses import replace

from lensbridge.spec import MoE
from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA, NORMS

SHARED_EXPERTS = replace(GATED_MLP, path="shared_experts")

MIXTRAL = replace(
    LLAMA,
    name="mixtral",
    classes=("MixtralForCausalLM", "MixtralModel"),
    block=replace(BLOCK, mlp=MoE("mlp")),
)

MINIMAX_M2 = replace(
    MIXTRAL,
    name="minimax_m2",
    classes=("MiniMaxM2ForCausalLM", "MiniMaxM2Model"),
    block=replace(
        BLOCK,
        attn=replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", qk_norm_axes="flat"),
        mlp=MoE("mlp"),
    ),
)

PHIMOE = replace(
    MIXTRAL,
    name="phimoe",
    classes=("PhimoeForCausalLM", "PhimoeModel"),
    block=replace(BLOCK, norms=replace(NORMS, kind="LN"), mlp=MoE("mlp", router="router")),
)

ARIA_TEXT = replace(
    MIXTRAL,
    name="aria_text",
    classes=("AriaTextForCausalLM", "AriaTextModel"),
    block=replace(BLOCK, mlp=MoE("mlp", router="router", shared=SHARED_EXPERTS)),
)

SOLAR_OPEN = replace(
    MIXTRAL,
    name="solar_open",
    classes=("SolarOpenForCausalLM", "SolarOpenModel"),
    block=replace(BLOCK, mlp=MoE("mlp", shared=SHARED_EXPERTS)),
)

ARCHITECTURES = (MIXTRAL, MINIMAX_M2, PHIMOE, ARIA_TEXT, SOLAR_OPEN)

"""AFMoE and Laguna: gated attention with norms on heads, experts of which one is shared."""

from dataclasses import replace

from lensbridge.spec import MoE
from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA, NORMS

GATED = replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", gated=True)
SHARED_EXPERTS = replace(GATED_MLP, path="shared_experts")
SANDWICH = replace(
    BLOCK,
    norms=replace(
        NORMS,
        post_attn="post_attention_layernorm",
        pre_mlp="pre_mlp_layernorm",
        post_mlp="post_mlp_layernorm",
    ),
    attn=GATED,
)

AFMOE = replace(
    LLAMA,
    name="afmoe",
    classes=("AfmoeForCausalLM", "AfmoeModel"),
    requires={"mup_enabled": False},
    block=(
        replace(SANDWICH, mlp=MoE("mlp", router="router.gate", shared=SHARED_EXPERTS)),
        SANDWICH,
    ),
)

AFMOE_MUP = replace(
    AFMOE,
    name="afmoe_mup",
    requires={"mup_enabled": True},
    embed_scale="sqrt(hidden_size)",
)

LAGUNA = replace(
    LLAMA,
    name="laguna",
    classes=("LagunaForCausalLM", "LagunaModel"),
    block=(
        replace(BLOCK, attn=GATED, mlp=MoE("mlp", shared=SHARED_EXPERTS)),
        replace(BLOCK, attn=GATED),
    ),
)

ARCHITECTURES = (AFMOE, AFMOE_MUP, LAGUNA)

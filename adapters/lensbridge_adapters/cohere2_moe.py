"""Cohere 2 with experts, dense first layers, and RMSNorms or LayerNorms by config."""

from dataclasses import replace

from lensbridge.spec import MoE
from lensbridge_adapters.cohere import BLOCK, COHERE2
from lensbridge_adapters.llama import GATED_MLP

RMS_BLOCK = replace(BLOCK, norms=replace(BLOCK.norms, kind="RMS"))
SHARED = MoE("mlp", shared=replace(GATED_MLP, path="shared_experts"))
ALONE = MoE("mlp")

COHERE2_MOE = replace(
    COHERE2,
    name="cohere2_moe",
    classes=("Cohere2MoeForCausalLM", "Cohere2MoeModel"),
    block=(replace(RMS_BLOCK, mlp=SHARED), replace(RMS_BLOCK, mlp=ALONE), RMS_BLOCK),
)

COHERE2_MOE_LAYER_NORM = replace(
    COHERE2_MOE,
    name="cohere2_moe_layer_norm",
    requires={"rms_norm_eps": None},
    block=(replace(BLOCK, mlp=SHARED), replace(BLOCK, mlp=ALONE), BLOCK),
    overrides="cohere2_moe",
)

ARCHITECTURES = (COHERE2_MOE, COHERE2_MOE_LAYER_NORM)

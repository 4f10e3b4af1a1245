"""GLM: Llama with a fused gated MLP. GLM 4 has norms behind the branches too."""

from dataclasses import replace

from lensbridge.spec import FusedGatedMLP
from lensbridge_adapters.llama import BLOCK, LLAMA, NORMS

FUSED_BLOCK = replace(BLOCK, mlp=FusedGatedMLP("mlp", gate_up="gate_up_proj", down="down_proj"))

GLM = replace(LLAMA, name="glm", classes=("GlmForCausalLM", "GlmModel"), block=FUSED_BLOCK)

GLM4 = replace(
    LLAMA,
    name="glm4",
    classes=("Glm4ForCausalLM", "Glm4Model"),
    block=replace(
        FUSED_BLOCK,
        norms=replace(NORMS, post_attn="post_self_attn_layernorm", post_mlp="post_mlp_layernorm"),
    ),
)

ARCHITECTURES = (GLM, GLM4)

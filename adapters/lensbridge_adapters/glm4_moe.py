"""GLM 4.5: experts, one of them shared, behind a few dense layers; norms on heads or none.

dots.llm1, EXAONE MoE, Hunyuan 3 and Kolibri are of the same shape.
"""

from dataclasses import replace

from lensbridge.spec import Architecture, Attention, MoE
from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA, NORMS

EXPERTS = MoE("mlp", shared=replace(GATED_MLP, path="shared_experts"))
POSITIONS_FIRST = replace(ATTENTION, q_norm="q_norm", k_norm="k_norm")
HEADS_FIRST = replace(POSITIONS_FIRST, qk_norm_axes="heads_first")


def _with_experts(name: str, classes: tuple[str, ...], attn: Attention) -> Architecture:
    dense = replace(BLOCK, attn=attn)
    return replace(LLAMA, name=name, classes=classes, block=(replace(dense, mlp=EXPERTS), dense))


GLM4_MOE = replace(
    _with_experts("glm4_moe", ("Glm4MoeForCausalLM", "Glm4MoeModel"), ATTENTION),
    requires={"use_qk_norm": False},
)
GLM4_MOE_NORMED_HEADS = replace(
    _with_experts("glm4_moe_normed_heads", GLM4_MOE.classes, POSITIONS_FIRST),
    requires={"use_qk_norm": True},
)
DOTS1 = _with_experts("dots1", ("Dots1ForCausalLM", "Dots1Model"), POSITIONS_FIRST)
EXAONE_MOE = _with_experts(
    "exaone_moe",
    ("ExaoneMoeForCausalLM", "ExaoneMoeModel", "HYV3ForCausalLM", "HYV3Model"),
    HEADS_FIRST,
)
KOLIBRI1 = replace(
    LLAMA,
    name="kolibri1",
    classes=("Kolibri1ForCausalLM", "Kolibri1Model"),
    block=replace(
        BLOCK,
        norms=replace(NORMS, post_attn="post_self_attn_layernorm", post_mlp="post_mlp_layernorm"),
        attn=HEADS_FIRST,
        mlp=EXPERTS,
    ),
)

ARCHITECTURES = (GLM4_MOE, GLM4_MOE_NORMED_HEADS, DOTS1, EXAONE_MOE, KOLIBRI1)

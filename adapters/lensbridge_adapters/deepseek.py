"""DeepSeek 2 and 3: latent attention (MLA), experts of which some are shared, behind dense layers.

GLM 4.7 Flash and 5, A.X K1 (a norm behind its experts) and Youtu (all dense) share the shape.
An indexer, where there is one, masks positions before the softmax.
"""

from dataclasses import replace

from lensbridge.spec import Dims, LatentQKV, MoE
from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA, NORMS

LATENT = replace(BLOCK, attn=replace(ATTENTION, qkv=LatentQKV()))
# the smaller models have no latent for the queries
PLAIN_QUERIES = replace(
    BLOCK, attn=replace(ATTENTION, qkv=LatentQKV(q="q_proj", q_down=None, q_norm=None))
)
EXPERTS = MoE("mlp", shared=replace(GATED_MLP, path="shared_experts"))

DEEPSEEK = replace(
    LLAMA,
    name="deepseek",
    classes=(
        "DeepseekV2ForCausalLM",
        "DeepseekV2Model",
        "DeepseekV3ForCausalLM",
        "DeepseekV3Model",
        "DeepseekV32ForCausalLM",
        "DeepseekV32Model",
        "GlmMoeDsaForCausalLM",
        "GlmMoeDsaModel",
        "Glm4MoeLiteForCausalLM",
        "Glm4MoeLiteModel",
        "YoutuForCausalLM",
        "YoutuModel",
    ),
    dims=Dims(),
    block=(
        replace(LATENT, mlp=EXPERTS),
        replace(PLAIN_QUERIES, mlp=EXPERTS),
        LATENT,
        PLAIN_QUERIES,
    ),
)

AXK1 = replace(
    DEEPSEEK,
    name="axk1",
    classes=("AXK1ForCausalLM", "AXK1Model"),
    block=(
        replace(LATENT, norms=replace(NORMS, post_mlp="mlp.post_mlp_layernorm"), mlp=EXPERTS),
        LATENT,
    ),
)

ARCHITECTURES = (DEEPSEEK, AXK1)

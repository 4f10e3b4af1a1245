"""Cohere (Command R): one norm for attention and MLP, which run in parallel; scaled logits."""

from dataclasses import replace

from lensbridge.spec import Block, Norms
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA

BLOCK = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="input_layernorm"),
    attn=ATTENTION,
    mlp=GATED_MLP,
    residual="parallel",
)

COHERE2 = replace(
    LLAMA,
    name="cohere2",
    classes=(
        "Cohere2ForCausalLM",
        "Cohere2Model",
        "CohereCompassForCausalLM",
        "CohereCompassTextModel",
    ),
    block=BLOCK,
    logit_scale="logit_scale",
)
COHERE = replace(
    COHERE2,
    name="cohere",
    classes=("CohereForCausalLM", "CohereModel"),
    requires={"use_qk_norm": False},
)
COHERE_NORMED_HEADS = replace(
    COHERE,
    name="cohere_normed_heads",
    requires={"use_qk_norm": True},
    block=replace(BLOCK, attn=replace(ATTENTION, q_norm="q_norm", k_norm="k_norm")),
)

ARCHITECTURES = (COHERE, COHERE_NORMED_HEADS, COHERE2)

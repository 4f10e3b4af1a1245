"""StableLM: Llama with LayerNorms, in sequence or in parallel, with or without norms on heads."""

from dataclasses import replace

from lensbridge.spec import Block, Dims, Norms
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA

# for each head a norm with weights of its own
NORMED_HEADS = replace(
    ATTENTION, q_norm="q_layernorm", k_norm="k_layernorm", qk_norm_axes="heads_first"
)
BLOCK = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm"),
    attn=ATTENTION,
    mlp=replace(GATED_MLP, written_by="dropout"),
)
# one norm for both branches
PARALLEL_BLOCK = replace(
    BLOCK, norms=Norms(pre_attn="input_layernorm", pre_mlp="input_layernorm"), residual="parallel"
)

STABLELM = replace(
    LLAMA,
    name="stablelm",
    classes=("StableLmForCausalLM", "StableLmModel"),
    requires={"use_parallel_residual": False, "qk_layernorm": False},
    dims=Dims(kv_heads="num_key_value_heads"),
    block=BLOCK,
)
STABLELM_PARALLEL = replace(
    STABLELM,
    name="stablelm_parallel",
    requires={"use_parallel_residual": True, "qk_layernorm": False},
    block=PARALLEL_BLOCK,
)
STABLELM_NORMED_HEADS = replace(
    STABLELM,
    name="stablelm_normed_heads",
    requires={"use_parallel_residual": False, "qk_layernorm": True},
    block=replace(BLOCK, attn=NORMED_HEADS),
)
STABLELM_PARALLEL_NORMED_HEADS = replace(
    STABLELM,
    name="stablelm_parallel_normed_heads",
    requires={"use_parallel_residual": True, "qk_layernorm": True},
    block=replace(PARALLEL_BLOCK, attn=NORMED_HEADS),
)

ARCHITECTURES = (
    STABLELM,
    STABLELM_PARALLEL,
    STABLELM_NORMED_HEADS,
    STABLELM_PARALLEL_NORMED_HEADS,
)

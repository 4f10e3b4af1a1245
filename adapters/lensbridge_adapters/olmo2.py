"""OLMo 2 and 3: norms only behind the branches, and on all queries and all keys together.

EXAONE 4 is the same with norms on each query and key head; FlexOlmo with experts.
"""

from dataclasses import replace

from lensbridge.spec import Block, MoE, Norms
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA

NORMED_HEADS = replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", qk_norm_axes="flat")
BLOCK = Block(
    norms=Norms(
        post_attn="post_attention_layernorm", post_mlp="post_feedforward_layernorm", kind="RMS"
    ),
    attn=NORMED_HEADS,
    mlp=GATED_MLP,
)

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    classes=("Olmo2ForCausalLM", "Olmo2Model", "Olmo3ForCausalLM", "Olmo3Model"),
    block=BLOCK,
)

EXAONE4 = replace(
    LLAMA,
    name="exaone4",
    classes=("Exaone4ForCausalLM", "Exaone4Model"),
    block=replace(BLOCK, attn=replace(NORMED_HEADS, qk_norm_axes="heads_first")),
)

FLEX_OLMO = replace(
    LLAMA,
    name="flex_olmo",
    classes=("FlexOlmoForCausalLM", "FlexOlmoModel"),
    block=replace(BLOCK, mlp=MoE("mlp")),
)

ARCHITECTURES = (OLMO2, EXAONE4, FLEX_OLMO)

"""Gemma 3n: several streams predict and correct one another (AltUp)."""

from dataclasses import replace

from lensbridge.spec import Block, SplitQKV
from lensbridge_adapters.gemma2 import GEMMA2, MLP, NORMS
from lensbridge_adapters.llama import ATTENTION

NORMED_HEADS = replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", v_norm="v_norm")
KEYS_OF_EARLIER_LAYER = replace(
    NORMED_HEADS, qkv=SplitQKV(k=None, v=None), k_norm=None, v_norm=None
)

OWN_KEYS = Block(
    norms=replace(NORMS, post_attn=None, post_mlp=None, unit_offset=False),
    attn=NORMED_HEADS,
    mlp=replace(MLP, sparsity="activation_sparsity_pattern[layer_index]"),
    residual=None,
)
SHARED_KEYS = replace(OWN_KEYS, attn=KEYS_OF_EARLIER_LAYER)

GEMMA3N_TEXT = replace(
    GEMMA2,
    name="gemma3n_text",
    classes=("Gemma3nForCausalLM", "Gemma3nTextModel"),
    block=(OWN_KEYS, SHARED_KEYS),
    streams="streams_first",
    undescribed={
        "residual": "four streams predict and correct one another (AltUp), so there is no one "
        "stream that branches add to",
    },
)

# its images are seen by a model of timm, and sounds by a tower of its own
GEMMA3N = replace(
    GEMMA3N_TEXT,
    name="gemma3n",
    classes=("Gemma3nForConditionalGeneration", "Gemma3nModel"),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
)

ARCHITECTURES = (GEMMA3N_TEXT, GEMMA3N)

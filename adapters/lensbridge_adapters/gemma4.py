"""Gemma 4, the text model: per-layer inputs, scaled layers, shared keys and values.

Layers differ by config: there is one block for each way to get keys and values, with and without a
per-layer input, with and without experts beside the MLP.
"""

from dataclasses import replace

from lensbridge.spec import Block, Dims, MoE, SplitQKV
from lensbridge_adapters.gemma2 import GEMMA2, MLP, NORMS
from lensbridge_adapters.gemma3n import KEYS_OF_EARLIER_LAYER, NORMED_HEADS

KEYS_ARE_VALUES = replace(NORMED_HEADS, qkv=SplitQKV(v="k_proj"))

DENSE = Block(
    norms=replace(NORMS, unit_offset=False),
    attn=NORMED_HEADS,
    mlp=MLP,
    out_scale="layer_scalar",
)
PER_LAYER = replace(DENSE, per_layer="post_per_layer_input_norm")
EXPERTS = MoE(
    "",
    router="router.proj",
    shared=MLP,
    act="hidden_activation",
    written_by="post_feedforward_layernorm",
)

# the richest first: a layer is read with the first whose modules it has
BLOCKS = tuple(
    replace(block, attn=attn)
    for attn in (NORMED_HEADS, KEYS_ARE_VALUES, KEYS_OF_EARLIER_LAYER)
    for block in (
        replace(PER_LAYER, mlp=EXPERTS),
        replace(DENSE, mlp=EXPERTS),
        PER_LAYER,
        DENSE,
    )
)

GEMMA4_TEXT = replace(
    GEMMA2,
    name="gemma4_text",
    classes=(
        "Gemma4ForCausalLM",
        "Gemma4TextModel",
        "Gemma4UnifiedForCausalLM",
        "Gemma4UnifiedTextModel",
    ),
    dims=Dims(),  # layers differ in how many key/value heads they have
    block=BLOCKS,
)

ARCHITECTURES = (GEMMA4_TEXT,)

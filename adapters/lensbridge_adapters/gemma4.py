"""Gemma 4, the text model: per-layer inputs, scaled layers, shared keys and values.

Layers differ by config: there is one block for each way to get keys and values, with and without a
per-layer input, with and without experts beside the MLP.
"""

from dataclasses import replace

from lensbridge.spec import Architecture, Attention, Block, Dims, GatedMLP, MoE, Norms, SplitQKV

ATTENTION = Attention(
    "self_attn",
    qkv=SplitQKV(),
    out="o_proj",
    rotary=True,
    q_norm="q_norm",
    k_norm="k_norm",
    v_norm="v_norm",
)
KEYS_ARE_VALUES = replace(ATTENTION, qkv=SplitQKV(v="k_proj"))
KEYS_OF_EARLIER_LAYER = replace(ATTENTION, qkv=SplitQKV(k=None, v=None), k_norm=None, v_norm=None)

GATED_MLP = GatedMLP(
    "mlp", gate="gate_proj", up="up_proj", down="down_proj", act="hidden_activation"
)
DENSE = Block(
    norms=Norms(
        pre_attn="input_layernorm",
        post_attn="post_attention_layernorm",
        pre_mlp="pre_feedforward_layernorm",
        post_mlp="post_feedforward_layernorm",
        kind="RMS",
    ),
    attn=ATTENTION,
    mlp=GATED_MLP,
    out_scale="layer_scalar",
)
PER_LAYER = replace(DENSE, per_layer="post_per_layer_input_norm")
EXPERTS = MoE(
    "",
    router="router.proj",
    shared=GATED_MLP,
    act="hidden_activation",
    written_by="post_feedforward_layernorm",
)

# the richest first: a layer is read with the first whose modules it has
BLOCKS = tuple(
    replace(block, attn=attn)
    for attn in (ATTENTION, KEYS_ARE_VALUES, KEYS_OF_EARLIER_LAYER)
    for block in (
        replace(PER_LAYER, mlp=EXPERTS),
        replace(DENSE, mlp=EXPERTS),
        PER_LAYER,
        DENSE,
    )
)

GEMMA4_TEXT = Architecture(
    name="gemma4_text",
    classes=(
        "Gemma4ForCausalLM",
        "Gemma4TextModel",
        "Gemma4UnifiedForCausalLM",
        "Gemma4UnifiedTextModel",
    ),
    dims=Dims(),
    embed="model.embed_tokens",
    blocks="model.layers",
    block=BLOCKS,
    final_norm="model.norm",
    unembed="lm_head",
    logit_softcap="final_logit_softcapping",
)

ARCHITECTURES = (GEMMA4_TEXT,)

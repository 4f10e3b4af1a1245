"""Gemma 3n: several streams predict and correct one another (AltUp)."""

from dataclasses import replace

from lensbridge.spec import Architecture, Attention, Block, Dims, GatedMLP, Norms, SplitQKV

OWN_KEYS = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="pre_feedforward_layernorm", kind="RMS"),
    attn=Attention(
        "self_attn",
        qkv=SplitQKV(),
        out="o_proj",
        rotary=True,
        q_norm="q_norm",
        k_norm="k_norm",
        v_norm="v_norm",
    ),
    mlp=GatedMLP(
        "mlp",
        gate="gate_proj",
        up="up_proj",
        down="down_proj",
        act="hidden_activation",
        sparsity="activation_sparsity_pattern[layer_index]",
    ),
    residual=None,
)
SHARED_KEYS = replace(
    OWN_KEYS,
    attn=Attention(
        "self_attn", qkv=SplitQKV(k=None, v=None), out="o_proj", rotary=True, q_norm="q_norm"
    ),
)

GEMMA3N_TEXT = Architecture(
    name="gemma3n_text",
    classes=("Gemma3nForCausalLM", "Gemma3nTextModel"),
    dims=Dims(kv_heads="num_key_value_heads"),
    embed="model.embed_tokens",
    blocks="model.layers",
    block=(OWN_KEYS, SHARED_KEYS),
    streams="streams_first",
    final_norm="model.norm",
    unembed="lm_head",
    logit_softcap="final_logit_softcapping",
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

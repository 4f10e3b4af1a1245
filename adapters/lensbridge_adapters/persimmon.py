"""Persimmon: fused QKV per head, norms on query and key heads, partial rotary, squared ReLU."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, FusedQKV, Norms

ATTENTION = Attention(
    "self_attn",
    qkv=FusedQKV("query_key_value", layout="grouped"),
    out="dense",
    rotary=True,
)
BLOCK = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm"),
    attn=ATTENTION,
    mlp=MLP("mlp", up="dense_h_to_4h", down="dense_4h_to_h", written_by="dropout"),
)

PERSIMMON = Architecture(
    name="persimmon",
    classes=("PersimmonForCausalLM", "PersimmonModel"),
    requires={"qk_layernorm": True},
    embed="model.embed_tokens",
    blocks="model.layers",
    block=replace(BLOCK, attn=replace(ATTENTION, q_norm="q_layernorm", k_norm="k_layernorm")),
    final_norm="model.final_layernorm",
    unembed="lm_head",
)

PERSIMMON_PLAIN_HEADS = replace(
    PERSIMMON,
    name="persimmon_plain_heads",
    requires={"qk_layernorm": False},
    block=BLOCK,
)

ARCHITECTURES = (PERSIMMON, PERSIMMON_PLAIN_HEADS)

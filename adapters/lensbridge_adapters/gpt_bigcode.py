"""GPT-BigCode (StarCoder, SantaCoder): GPT-2 with one key/value head, or with one for each head."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, FusedQKV, Norms

BLOCK = Block(
    norms=Norms(pre_attn="ln_1", pre_mlp="ln_2"),
    attn=Attention("attn", qkv=FusedQKV("c_attn", layout="blocked"), out="c_proj"),
    mlp=MLP("mlp", up="c_fc", down="c_proj", act="activation_function"),
)

MULTI_QUERY = Architecture(
    name="gpt_bigcode",
    classes=("GPTBigCodeForCausalLM", "GPTBigCodeModel"),
    requires={"multi_query": True},
    dims=Dims(kv_heads=1),
    embed="transformer.wte",
    pos_embed="transformer.wpe",
    blocks="transformer.h",
    block=BLOCK,
    final_norm="transformer.ln_f",
    unembed="lm_head",
)

# The same projection, held per head instead.
MULTI_HEAD = replace(
    MULTI_QUERY,
    name="gpt_bigcode_multi_head",
    requires={"multi_query": False},
    dims=Dims(),
    block=replace(
        BLOCK, attn=Attention("attn", qkv=FusedQKV("c_attn", layout="grouped"), out="c_proj")
    ),
)

ARCHITECTURES = (MULTI_QUERY, MULTI_HEAD)

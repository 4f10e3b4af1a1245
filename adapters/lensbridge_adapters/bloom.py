"""BLOOM: fused QKV per head, ALiBi, a norm on the embedding; modules add the residual."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, FusedQKV, Norms

BLOCK = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm"),
    attn=Attention(
        "self_attention",
        qkv=FusedQKV("query_key_value", layout="grouped"),
        out="dense",
        written_by="self_attention.dense",
    ),
    mlp=MLP(
        "mlp",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        act="gelu_new",  # not in the config
        written_by="mlp.dense_4h_to_h",
    ),
)

BLOOM = Architecture(
    name="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    # slow_but_exact multiplies slices of the weights without calling the projections
    requires={"apply_residual_connection_post_layernorm": False, "slow_but_exact": False},
    dims=Dims(context=None),
    embed="transformer.word_embeddings",
    embed_norm="transformer.word_embeddings_layernorm",
    blocks="transformer.h",
    block=BLOCK,
    final_norm="transformer.ln_f",
    unembed="lm_head",
)

BLOOM_SKIP_NORM = replace(
    BLOOM,
    name="bloom_skip_norm",
    requires={"apply_residual_connection_post_layernorm": True, "slow_but_exact": False},
    block=replace(BLOCK, skip_norm=True),
)

ARCHITECTURES = (BLOOM, BLOOM_SKIP_NORM)

"""DBRX: fused QKV, experts in flat parameters, attention and both norms in one module."""

from lensbridge.spec import (
    Architecture,
    Attention,
    Block,
    Dims,
    FusedQKV,
    MoE,
    Norms,
    StackedExperts,
)

EXPERTS = StackedExperts(
    "experts",
    gate="mlp.w1",
    up="mlp.v1",
    down="mlp.w2",
    layout="neuron_rows",
    activation="mlp.activation_fn",
)

DBRX = Architecture(
    name="dbrx",
    classes=("DbrxForCausalLM", "DbrxModel"),
    dims=Dims(kv_heads="num_key_value_heads"),
    embed="transformer.wte",
    blocks="transformer.blocks",
    block=Block(
        norms=Norms(pre_attn="norm_attn_norm.norm_1", pre_mlp="norm_attn_norm.norm_2"),
        attn=Attention(
            "norm_attn_norm.attn",
            qkv=FusedQKV("Wqkv", layout="blocked"),
            out="out_proj",
            rotary=True,
            clip="attn_config.clip_qkv",
        ),
        mlp=MoE("ffn", router="router.layer", experts=EXPERTS, act="silu"),
    ),
    final_norm="transformer.norm_f",
    unembed="lm_head",
)

ARCHITECTURES = (DBRX,)

"""Tinystack: pre-norm, sequential, fused grouped heads, gated MLP, learned positions."""

from lensbridge.spec import Architecture, Attention, Block, Dims, FusedQKV, GatedMLP, Norms

TINYSTACK = Architecture(
    name="tinystack",
    classes=("TinystackForCausalLM",),
    dims=Dims(
        layers="depth",
        d_model="width",
        heads="heads",
        kv_heads="kv_heads",
        vocab="vocab_size",
        context="context",
    ),
    embed="body.tokens",
    pos_embed="body.positions",
    blocks="body.layers",
    block=Block(
        norms=Norms(pre_attn="norm_in", pre_mlp="norm_mid", kind="RMS"),
        attn=Attention("mix", qkv=FusedQKV("qkv", layout="grouped"), out="out"),
        mlp=GatedMLP("think", gate="gate", up="up", down="down", act="activation"),
    ),
    final_norm="body.norm",
    unembed="head",
)

ARCHITECTURES = (TINYSTACK,)

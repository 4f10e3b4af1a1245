"""GPT-2: pre-norm, sequential, one fused QKV projection, plain MLP, learned positions."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, FusedQKV, Norms

GPT2 = Architecture(
    name="gpt2",
    classes=("GPT2LMHeadModel", "GPT2Model"),
    dims=Dims(layers="n_layer", d_model="n_embd", heads="n_head", context="n_positions"),
    embed="transformer.wte",
    pos_embed="transformer.wpe",
    blocks="transformer.h",
    block=Block(
        norms=Norms(pre_attn="ln_1", pre_mlp="ln_2"),
        attn=Attention("attn", qkv=FusedQKV("c_attn", layout="blocked"), out="c_proj"),
        mlp=MLP("mlp", up="c_fc", down="c_proj", act="activation_function"),
    ),
    final_norm="transformer.ln_f",
    unembed="lm_head",
)

ARCHITECTURES = (GPT2,)

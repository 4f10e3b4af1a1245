"""GPT-Neo: GPT-2 with three projections, unscaled scores, and local attention in turns."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

GPT_NEO = Architecture(
    name="gpt_neo",
    classes=("GPTNeoForCausalLM", "GPTNeoModel"),
    embed="transformer.wte",
    pos_embed="transformer.wpe",
    blocks="transformer.h",
    block=Block(
        norms=Norms(pre_attn="ln_1", pre_mlp="ln_2"),
        attn=Attention("attn.attention", qkv=SplitQKV(), out="out_proj"),
        mlp=MLP("mlp", up="c_fc", down="c_proj", act="activation_function"),
    ),
    final_norm="transformer.ln_f",
    unembed="lm_head",
)

ARCHITECTURES = (GPT_NEO,)

"""GPT-J: one norm for attention and MLP, which run in parallel; rotary."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

GPTJ = Architecture(
    name="gptj",
    classes=("GPTJForCausalLM", "GPTJModel"),
    embed="transformer.wte",
    blocks="transformer.h",
    block=Block(
        norms=Norms(pre_attn="ln_1", pre_mlp="ln_1"),
        attn=Attention("attn", qkv=SplitQKV(), out="out_proj", rotary=True),
        mlp=MLP("mlp", up="fc_in", down="fc_out", act="activation_function"),
        residual="parallel",
    ),
    final_norm="transformer.ln_f",
    unembed="lm_head",
)

ARCHITECTURES = (GPTJ,)

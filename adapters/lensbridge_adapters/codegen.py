"""CodeGen: GPT-J with one projection, held as four shards of queries, values and keys."""

from lensbridge.spec import MLP, Architecture, Attention, Block, FusedQKV, Norms

CODEGEN = Architecture(
    name="codegen",
    classes=("CodeGenForCausalLM", "CodeGenModel"),
    embed="transformer.wte",
    blocks="transformer.h",
    block=Block(
        norms=Norms(pre_attn="ln_1", pre_mlp="ln_1"),
        attn=Attention(
            "attn", qkv=FusedQKV("qkv_proj", layout="sharded"), out="out_proj", rotary=True
        ),
        mlp=MLP("mlp", up="fc_in", down="fc_out", act="activation_function"),
        residual="parallel",
    ),
    final_norm="transformer.ln_f",
    unembed="lm_head",
)

ARCHITECTURES = (CODEGEN,)

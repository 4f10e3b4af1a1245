"""Phi 1 to 2: one norm for attention and MLP, which run in parallel; partial rotary."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Norms, SplitQKV

ATTENTION = Attention("self_attn", qkv=SplitQKV(), out="dense", rotary=True)
BLOCK = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="input_layernorm"),
    attn=ATTENTION,
    mlp=MLP("mlp", up="fc1", down="fc2"),
    residual="parallel",
)

PHI = Architecture(
    name="phi",
    classes=("PhiForCausalLM", "PhiModel"),
    requires={"qk_layernorm": False},
    dims=Dims(kv_heads="num_key_value_heads"),
    embed="model.embed_tokens",
    blocks="model.layers",
    block=BLOCK,
    final_norm="model.final_layernorm",
    unembed="lm_head",
)

PHI_NORMED_HEADS = replace(
    PHI,
    name="phi_normed_heads",
    requires={"qk_layernorm": True},
    block=replace(
        BLOCK,
        attn=replace(
            ATTENTION, q_norm="q_layernorm", k_norm="k_layernorm", qk_norm_axes="heads_first"
        ),
    ),
)

ARCHITECTURES = (PHI, PHI_NORMED_HEADS)

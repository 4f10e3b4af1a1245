"""GPT-NeoX and Pythia: fused QKV per head, partial rotary, two ways to meet the residual stream."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, FusedQKV, Norms

BLOCK = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm"),
    attn=Attention(
        "attention",
        qkv=FusedQKV("query_key_value", layout="grouped"),
        out="dense",
        rotary=True,
        written_by="post_attention_dropout",
    ),
    mlp=MLP("mlp", up="dense_h_to_4h", down="dense_4h_to_h", written_by="post_mlp_dropout"),
    residual="parallel",
)

GPT_NEOX = Architecture(
    name="gpt_neox",
    classes=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    requires={"use_parallel_residual": True},
    embed="gpt_neox.embed_in",
    blocks="gpt_neox.layers",
    block=BLOCK,
    final_norm="gpt_neox.final_layer_norm",
    unembed="lm_head",
)

GPT_NEOX_SEQUENTIAL = replace(
    GPT_NEOX,
    name="gpt_neox_sequential",
    requires={"use_parallel_residual": False},
    block=replace(BLOCK, residual="sequential"),
)

ARCHITECTURES = (GPT_NEOX, GPT_NEOX_SEQUENTIAL)

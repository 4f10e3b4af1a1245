"""Llama and what shares its shape: pre-norm RMS, split QKV, grouped heads, rotary, gated MLP."""

from lensbridge.spec import Architecture, Attention, Block, Dims, GatedMLP, Norms, SplitQKV

LLAMA = Architecture(
    name="llama",
    classes=(
        "LlamaForCausalLM",
        "LlamaModel",
        "MistralForCausalLM",
        "MistralModel",
        "Qwen2ForCausalLM",
        "Qwen2Model",
    ),
    dims=Dims(kv_heads="num_key_value_heads", d_head="head_dim"),
    embed="model.embed_tokens",
    blocks="model.layers",
    block=Block(
        norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm", kind="RMS"),
        attn=Attention("self_attn", qkv=SplitQKV(), out="o_proj", rotary=True),
        mlp=GatedMLP("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    ),
    final_norm="model.norm",
    unembed="lm_head",
)

ARCHITECTURES = (LLAMA,)

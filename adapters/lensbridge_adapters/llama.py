"""Llama and what shares its shape: pre-norm RMS, split QKV, grouped heads, rotary, gated MLP."""

from lensbridge.spec import Architecture, Attention, Block, Dims, GatedMLP, Norms, SplitQKV

DIMS = Dims(kv_heads="num_key_value_heads")
NORMS = Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm", kind="RMS")
ATTENTION = Attention("self_attn", qkv=SplitQKV(), out="o_proj", rotary=True)
GATED_MLP = GatedMLP("mlp", gate="gate_proj", up="up_proj", down="down_proj")
BLOCK = Block(norms=NORMS, attn=ATTENTION, mlp=GATED_MLP)

LLAMA = Architecture(
    name="llama",
    classes=(
        "LlamaForCausalLM",
        "LlamaModel",
        "MistralForCausalLM",
        "MistralModel",
        "MinistralForCausalLM",
        "MinistralModel",
        "Ministral3ForCausalLM",
        "Ministral3Model",
        "Qwen2ForCausalLM",
        "Qwen2Model",
        "Qwen2VLTextModel",
        "Qwen2_5_VLTextModel",
        "SmolLM3ForCausalLM",
        "SmolLM3Model",
        "SeedOssForCausalLM",
        "SeedOssModel",
        "Ernie4_5ForCausalLM",
        "Ernie4_5Model",
        "HeliumForCausalLM",
        "HeliumModel",
        "CwmForCausalLM",
        "CwmModel",
        "Emu3ForCausalLM",
        "Emu3TextModel",
    ),
    dims=DIMS,
    embed="model.embed_tokens",
    blocks="model.layers",
    block=BLOCK,
    final_norm="model.norm",
    unembed="lm_head",
)

ARCHITECTURES = (LLAMA,)

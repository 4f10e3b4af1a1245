"""Llama 3.2 Vision: Llama's layers, and between them layers with gated attention to an image."""

from dataclasses import replace

from lensbridge.spec import MLP, Attention, Block, Dims, Norms, SplitQKV, Stack
from lensbridge_adapters.llama import BLOCK, GATED_MLP, LLAMA

# layers that no text without an image runs through
CROSS_BLOCK = Block(
    norms=Norms(pre_cross="input_layernorm", pre_mlp="post_attention_layernorm", kind="RMS"),
    cross=Attention(
        "cross_attn",
        qkv=SplitQKV(),
        out="o_proj",
        q_norm="q_norm",
        k_norm="k_norm",
        qk_norm_axes="heads_first",
        scale="tanh(cross_attn_attn_gate)",
    ),
    mlp=replace(GATED_MLP, scale="tanh(cross_attn_mlp_gate)"),
)

MLLAMA_TEXT = replace(
    LLAMA,
    name="mllama_text",
    classes=("MllamaForCausalLM", "MllamaTextModel"),
    block=(BLOCK, CROSS_BLOCK),
)

VISION_ATTENTION = Attention("self_attn", qkv=SplitQKV(), out="o_proj")
VISION_MLP = MLP("mlp", up="fc1", down="fc2")
VISION_BLOCK = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm"),
    attn=VISION_ATTENTION,
    mlp=VISION_MLP,
)

VISION = Stack(
    prefix="vision.blocks",
    dims=Dims(context=None),
    config="vision_config",
    blocks="model.vision_model.transformer.layers",
    block=VISION_BLOCK,
    final_norm="model.vision_model.layernorm_post",
)

# all tiles of an image attend to one another in both stacks; this one is gated
GLOBAL_VISION = replace(
    VISION,
    prefix="global.blocks",
    dims=Dims(layers="num_global_layers", context=None),
    blocks="model.vision_model.global_transformer.layers",
    block=replace(
        VISION_BLOCK,
        attn=replace(VISION_ATTENTION, scale="tanh(gate_attn)"),
        mlp=replace(VISION_MLP, scale="tanh(gate_ffn)"),
    ),
    final_norm=None,
)

MLLAMA = replace(
    MLLAMA_TEXT,
    name="mllama",
    classes=("MllamaForConditionalGeneration", "MllamaModel"),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    towers=(VISION, GLOBAL_VISION),
)

ARCHITECTURES = (MLLAMA_TEXT, MLLAMA)

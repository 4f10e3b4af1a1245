"""InternVL: a vision tower with branches scaled per channel, a projector and Qwen 2's layers."""

from dataclasses import replace

from lensbridge.spec import MLP, Attention, Block, Dims, Norms, SplitQKV, Stack
from lensbridge_adapters.llama import LLAMA

INTERNVL = replace(
    LLAMA,
    name="internvl",
    classes=("InternVLForConditionalGeneration", "InternVLModel"),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    projector="model.multi_modal_projector",
    towers=(
        Stack(
            prefix="vision.blocks",
            config="vision_config",
            dims=Dims(context=None),
            embed="model.vision_tower.embeddings",
            blocks="model.vision_tower.encoder.layer",
            # what a branch adds is multiplied by a vector that the layer holds
            block=Block(
                norms=Norms(pre_attn="layernorm_before", pre_mlp="layernorm_after"),
                attn=Attention(
                    "attention", qkv=SplitQKV(), out="projection_layer", scale="lambda_1"
                ),
                mlp=MLP("mlp", up="fc1", down="fc2", scale="lambda_2"),
            ),
        ),
    ),
)

ARCHITECTURES = (INTERNVL,)

"""InternVL: a vision tower with branches scaled per channel, a projector and Qwen 2's layers."""

from dataclasses import replace

from lensbridge.spec import Block, Dims, Stack
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
            embed="model.vision_tower.embeddings.patch_embeddings",
            blocks="model.vision_tower.encoder.layer",
            # what a branch adds is multiplied by a parameter of the layer, outside of any module
            block=Block(residual=None),
        ),
    ),
)

ARCHITECTURES = (INTERNVL,)

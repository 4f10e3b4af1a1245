"""LLaVA: a CLIP vision tower, a projector and a language model of Llama's shape."""

from dataclasses import replace

from lensbridge_adapters.clip import CLIP_VISION_TOWER
from lensbridge_adapters.llama import LLAMA

LLAVA = replace(
    LLAMA,
    name="llava",
    classes=("LlavaForConditionalGeneration", "LlavaModel"),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    projector="model.multi_modal_projector",
    towers=(
        replace(
            CLIP_VISION_TOWER,
            embed="model.vision_tower.embeddings",
            embed_norm="model.vision_tower.pre_layrnorm",
            blocks="model.vision_tower.encoder.layers",
        ),
    ),
)

ARCHITECTURES = (LLAVA,)

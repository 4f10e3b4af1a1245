"""Idefics 3 and SmolVLM: a SigLIP-like vision tower, a connector and Llama's layers."""

from dataclasses import replace

from lensbridge_adapters.llama import LLAMA
from lensbridge_adapters.siglip import SIGLIP_VISION_TOWER

IDEFICS3 = replace(
    LLAMA,
    name="idefics3",
    classes=(
        "Idefics3ForConditionalGeneration",
        "Idefics3Model",
        "SmolVLMForConditionalGeneration",
        "SmolVLMModel",
    ),
    config="text_config",
    embed="model.text_model.embed_tokens",
    blocks="model.text_model.layers",
    final_norm="model.text_model.norm",
    projector="model.connector",
    towers=(
        replace(
            SIGLIP_VISION_TOWER,
            embed="model.vision_model.embeddings",
            blocks="model.vision_model.encoder.layers",
            final_norm="model.vision_model.post_layernorm",
        ),
    ),
)

ARCHITECTURES = (IDEFICS3,)

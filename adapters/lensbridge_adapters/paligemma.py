"""PaliGemma and multimodal Gemma 3: a SigLIP vision tower, a projector and Gemma's layers."""

from dataclasses import replace

from lensbridge_adapters.gemma import GEMMA
from lensbridge_adapters.gemma2 import BLOCK as GEMMA2_BLOCK
from lensbridge_adapters.gemma3 import GEMMA3_TEXT
from lensbridge_adapters.llama import BLOCK, NORMS
from lensbridge_adapters.siglip import SIGLIP_VISION_TOWER

VISION_TOWER = replace(
    SIGLIP_VISION_TOWER,
    embed="model.vision_tower.embeddings",
    blocks="model.vision_tower.encoder.layers",
    final_norm="model.vision_tower.post_layernorm",
)

PALIGEMMA = replace(
    GEMMA,
    name="paligemma",
    classes=("PaliGemmaForConditionalGeneration", "PaliGemmaModel"),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    # PaliGemma 2 speaks Gemma 2
    block=(GEMMA2_BLOCK, replace(BLOCK, norms=replace(NORMS, unit_offset=True))),
    final_norm="model.language_model.norm",
    logit_softcap="final_logit_softcapping",
    projector="model.multi_modal_projector",
    towers=(VISION_TOWER,),
)

# the multimodal class does not cap its logits
GEMMA3 = replace(
    GEMMA3_TEXT,
    name="gemma3",
    classes=("Gemma3ForConditionalGeneration", "Gemma3Model"),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    logit_softcap=None,
    projector="model.multi_modal_projector",
    towers=(VISION_TOWER,),
)

ARCHITECTURES = (PALIGEMMA, GEMMA3)

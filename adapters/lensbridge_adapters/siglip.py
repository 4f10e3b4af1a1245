"""SigLIP: CLIP's layers; the vision tower has a final norm and an attention pooler."""

from dataclasses import replace

from lensbridge_adapters.clip import CLIP, CLIP_TEXT, CLIP_VISION, CLIP_VISION_TOWER

SIGLIP_VISION_TOWER = replace(
    CLIP_VISION_TOWER, embed_norm=None, final_norm="vision_model.post_layernorm"
)

SIGLIP = replace(
    CLIP,
    name="siglip",
    classes=("SiglipModel",),
    pooler="text_model.head",
    towers=(SIGLIP_VISION_TOWER,),
)

SIGLIP_TEXT = replace(CLIP_TEXT, name="siglip_text", classes=("SiglipTextModel",), pooler="head")

SIGLIP_VISION = replace(
    CLIP_VISION,
    name="siglip_vision",
    classes=("SiglipVisionModel",),
    embed_norm=None,
    final_norm="post_layernorm",
    pooler="head",
)

ARCHITECTURES = (SIGLIP, SIGLIP_TEXT, SIGLIP_VISION)

"""GIT: BERT's post-norm layers, read causally, behind a CLIP-like vision tower."""

from dataclasses import replace

from lensbridge_adapters.bert import BERT
from lensbridge_adapters.clip import CLIP_VISION_TOWER

GIT = replace(
    BERT,
    name="git",
    classes=("GitForCausalLM", "GitModel"),
    embed="git.embeddings.word_embeddings",
    embed_overwritten=True,
    pos_embed="git.embeddings.position_embeddings",
    embed_norm="git.embeddings.LayerNorm",
    blocks="git.encoder.layer",
    pooler=None,
    head_hidden=None,
    unembed="output",
    projector="git.visual_projection",
    towers=(
        replace(
            CLIP_VISION_TOWER,
            embed="git.image_encoder.vision_model.embeddings",
            embed_norm="git.image_encoder.vision_model.pre_layrnorm",
            blocks="git.image_encoder.vision_model.encoder.layers",
            final_norm="git.image_encoder.vision_model.post_layernorm",
        ),
    ),
)

ARCHITECTURES = (GIT,)

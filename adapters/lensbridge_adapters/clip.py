"""CLIP: a text tower and a vision tower of the same pre-norm layers; also each tower alone."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Norms, SplitQKV, Stack

CLIP_BLOCK = Block(
    norms=Norms(pre_attn="layer_norm1", pre_mlp="layer_norm2"),
    attn=Attention("self_attn", qkv=SplitQKV(), out="out_proj"),
    mlp=MLP("mlp", up="fc1", down="fc2"),
)

# The patch embedding is a convolution, whose output is no sequence; the embeddings module's is.
# The norm behind the vision tower reads the class token alone: it is the pooler, no final norm
CLIP_VISION_TOWER = Stack(
    prefix="vision.blocks",
    config="vision_config",
    dims=Dims(context=None),
    embed="vision_model.embeddings",
    embed_norm="vision_model.pre_layrnorm",
    blocks="vision_model.encoder.layers",
    block=CLIP_BLOCK,
)

CLIP = Architecture(
    name="clip",
    classes=("CLIPModel",),
    config="text_config",
    embed="text_model.embeddings.token_embedding",
    pos_embed="text_model.embeddings.position_embedding",
    blocks="text_model.encoder.layers",
    block=CLIP_BLOCK,
    final_norm="text_model.final_layer_norm",
    towers=(CLIP_VISION_TOWER,),
)

CLIP_TEXT_WITH_PROJECTION = replace(
    CLIP,
    name="clip_text_with_projection",
    classes=("CLIPTextModelWithProjection",),
    config=None,
    towers=(),
)

CLIP_TEXT = replace(
    CLIP_TEXT_WITH_PROJECTION,
    name="clip_text",
    classes=("CLIPTextModel",),
    embed="embeddings.token_embedding",
    pos_embed="embeddings.position_embedding",
    blocks="encoder.layers",
    final_norm="final_layer_norm",
)

CLIP_VISION = Architecture(
    name="clip_vision",
    classes=("CLIPVisionModel",),
    dims=CLIP_VISION_TOWER.dims,
    embed="embeddings",
    embed_norm="pre_layrnorm",
    blocks="encoder.layers",
    block=CLIP_BLOCK,
    pooler="post_layernorm",
)

CLIP_VISION_WITH_PROJECTION = replace(
    CLIP_VISION,
    name="clip_vision_with_projection",
    classes=("CLIPVisionModelWithProjection",),
    embed=CLIP_VISION_TOWER.embed,
    embed_norm=CLIP_VISION_TOWER.embed_norm,
    blocks=CLIP_VISION_TOWER.blocks,
    pooler="vision_model.post_layernorm",
)

ARCHITECTURES = (
    CLIP,
    CLIP_TEXT_WITH_PROJECTION,
    CLIP_TEXT,
    CLIP_VISION,
    CLIP_VISION_WITH_PROJECTION,
)

"""Qwen 2 VL, 2.5 VL and 3 VL: the language model behind a vision tower, and the merger between.

The tower reads all patches of all images in one row, without a batch axis.
"""

from dataclasses import replace

from lensbridge.spec import MLP, Attention, Block, Dims, FusedQKV, Norms, Stack
from lensbridge_adapters.llama import GATED_MLP, LLAMA
from lensbridge_adapters.qwen3 import QWEN3
from lensbridge_adapters.qwen3_moe import QWEN3_MOE

VISION_NORMS = Norms(pre_attn="norm1", pre_mlp="norm2")
VISION_BLOCK = Block(
    norms=VISION_NORMS,
    attn=Attention("attn", qkv=FusedQKV("qkv", layout="blocked"), out="proj", rotary=True),
    mlp=MLP("mlp", up="fc1", down="fc2"),
)

VISION_TOWER = Stack(
    prefix="vision.blocks",
    config="vision_config",
    dims=Dims(layers="depth", d_model="embed_dim", heads="num_heads", context=None),
    embed="model.visual.patch_embed",
    blocks="model.visual.blocks",
    block=VISION_BLOCK,
    streams="flat",
)
WIDER_TOWER = replace(VISION_TOWER, dims=replace(VISION_TOWER.dims, d_model="hidden_size"))
# the patches are put in the order of the windows after the embedding
WINDOWED_TOWER = replace(
    WIDER_TOWER,
    embed_mixed=True,
    block=replace(VISION_BLOCK, norms=replace(VISION_NORMS, kind="RMS"), mlp=GATED_MLP),
)
# positions are interpolated from a table for each image
PLACED_TOWER = replace(
    WIDER_TOWER,
    embed_mixed=True,
    block=replace(VISION_BLOCK, mlp=MLP("mlp", up="linear_fc1", down="linear_fc2")),
)

QWEN2_VL = replace(
    LLAMA,
    name="qwen2_vl",
    classes=(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLModel",
    ),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    projector="model.visual.merger",
    towers=(VISION_TOWER,),
)

QWEN2_5_VL = replace(
    QWEN2_VL,
    name="qwen2_5_vl",
    classes=("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
    towers=(WINDOWED_TOWER,),
)

QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3_vl",
    classes=("Qwen3VLForConditionalGeneration", "Qwen3VLModel"),
    block=QWEN3.block,
    towers=(PLACED_TOWER,),
)

QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="qwen3_vl_moe",
    classes=("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeModel"),
    block=QWEN3_MOE.block,
)

ARCHITECTURES = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE)

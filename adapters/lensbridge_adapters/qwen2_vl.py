"""Qwen 2 VL, 2.5 VL and 3 VL: the language model behind a vision tower, and the merger between.

The tower reads all patches of all images in one row, without a batch axis, so only the ends of its
layers are described.
"""

from dataclasses import replace

from lensbridge.spec import Block, Dims, Stack
from lensbridge_adapters.llama import LLAMA
from lensbridge_adapters.qwen3 import QWEN3
from lensbridge_adapters.qwen3_moe import QWEN3_MOE

VISION_TOWER = Stack(
    prefix="vision.blocks",
    config="vision_config",
    dims=Dims(layers="depth", d_model="embed_dim", heads="num_heads", context=None),
    blocks="model.visual.blocks",
    block=Block(residual=None),
    streams="flat",
)
WIDER_TOWER = replace(VISION_TOWER, dims=replace(VISION_TOWER.dims, d_model="hidden_size"))

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
    towers=(WIDER_TOWER,),
)

QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3_vl",
    classes=("Qwen3VLForConditionalGeneration", "Qwen3VLModel"),
    block=QWEN3.block,
    towers=(WIDER_TOWER,),
)

QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="qwen3_vl_moe",
    classes=("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeModel"),
    block=QWEN3_MOE.block,
)

ARCHITECTURES = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE)

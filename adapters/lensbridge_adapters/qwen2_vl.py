"""Qwen 2 VL, 2.5 VL and 3 VL: the language model behind a vision tower, and the merger between.

The tower reads all patches of all images in one row, without a batch axis, so its inside is not
described.
"""

from dataclasses import replace

from lensbridge_adapters.llama import LLAMA
from lensbridge_adapters.qwen3 import QWEN3
from lensbridge_adapters.qwen3_moe import QWEN3_MOE

QWEN2_VL = replace(
    LLAMA,
    name="qwen2_vl",
    classes=(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLModel",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLModel",
    ),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    projector="model.visual.merger",
)

QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3_vl",
    classes=("Qwen3VLForConditionalGeneration", "Qwen3VLModel"),
    block=QWEN3.block,
)

QWEN3_VL_MOE = replace(
    QWEN2_VL,
    name="qwen3_vl_moe",
    classes=("Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeModel"),
    block=QWEN3_MOE.block,
)

ARCHITECTURES = (QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE)

"""GOT-OCR 2: Qwen 2 after a vision tower whose layers attend in windows of the image (SAM's)."""

from dataclasses import replace

from lensbridge.spec import MLP, Block, Dims, Norms, Stack
from lensbridge_adapters.llama import LLAMA

TOWER = Stack(
    prefix="vision.blocks",
    config="vision_config",
    dims=Dims(context=None),
    embed="model.vision_tower.patch_embed",
    blocks="model.vision_tower.layers",
    block=Block(
        norms=Norms(pre_attn="layer_norm1", pre_mlp="layer_norm2"),
        mlp=MLP("mlp", up="lin1", down="lin2"),
        residual=None,
    ),
    streams="grid",
)

GOT_OCR2 = replace(
    LLAMA,
    name="got_ocr2",
    classes=("GotOcr2ForConditionalGeneration", "GotOcr2Model"),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    projector="model.multi_modal_projector",
    towers=(TOWER,),
)

ARCHITECTURES = (GOT_OCR2,)

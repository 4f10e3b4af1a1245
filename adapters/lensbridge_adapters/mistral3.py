"""Mistral 3 and LLaVA on Pixtral: a rotary vision tower, a projector and Mistral's layers."""

from dataclasses import replace

from lensbridge.spec import Block, Dims, Norms, Stack
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA

MISTRAL3 = replace(
    LLAMA,
    name="mistral3",
    classes=("Mistral3ForConditionalGeneration", "Mistral3Model"),
    config="text_config",
    embed="model.language_model.embed_tokens",
    blocks="model.language_model.layers",
    final_norm="model.language_model.norm",
    projector="model.multi_modal_projector",
    towers=(
        Stack(
            prefix="vision.blocks",
            config="vision_config",
            dims=Dims(context=None),
            embed_norm="model.vision_tower.ln_pre",
            blocks="model.vision_tower.transformer.layers",
            block=Block(
                norms=Norms(pre_attn="attention_norm", pre_mlp="ffn_norm", kind="RMS"),
                attn=replace(ATTENTION, path="attention"),
                mlp=replace(GATED_MLP, path="feed_forward"),
            ),
        ),
    ),
)

ARCHITECTURES = (MISTRAL3,)

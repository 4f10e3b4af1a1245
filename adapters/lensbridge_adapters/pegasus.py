"""Pegasus, Blenderbot and M2M-100 (NLLB): mBART without a norm on the embedding."""

from dataclasses import replace

from lensbridge_adapters.marian import SCALE
from lensbridge_adapters.mbart import MBART, MBART_DECODER, PRE_NORM_ENCODER

# Blenderbot and M2M-100 scale inside the embedding module
BLENDERBOT = replace(
    MBART,
    name="blenderbot",
    classes=(
        "BlenderbotForConditionalGeneration",
        "BlenderbotModel",
        "M2M100ForConditionalGeneration",
        "M2M100Model",
    ),
    embed_norm=None,
    unembed="lm_head",
    towers=(replace(PRE_NORM_ENCODER, embed_norm=None),),
)

BLENDERBOT_DECODER = replace(
    MBART_DECODER,
    name="blenderbot_decoder",
    classes=("BlenderbotForCausalLM",),
    embed_norm=None,
)

PEGASUS = replace(
    BLENDERBOT,
    name="pegasus",
    classes=("PegasusForConditionalGeneration", "PegasusModel"),
    embed_scale=SCALE,
    towers=(replace(PRE_NORM_ENCODER, embed_scale=SCALE, embed_norm=None),),
)

PEGASUS_DECODER = replace(
    BLENDERBOT_DECODER,
    name="pegasus_decoder",
    classes=("PegasusForCausalLM",),
    embed_scale=SCALE,
)

ARCHITECTURES = (BLENDERBOT, BLENDERBOT_DECODER, PEGASUS, PEGASUS_DECODER)

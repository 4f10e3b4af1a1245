"""Marian and Blenderbot Small: BART's post-norm layers; the embedding is scaled outside its module.

`scale_embedding` is a switch, so the scale is the square root of d_model or one.
"""

from dataclasses import replace

from lensbridge_adapters.bart import BART, BART_DECODER, ENCODER

SCALE = "d_model ** (scale_embedding / 2)"

MARIAN = replace(
    BART,
    name="marian",
    classes=("MarianMTModel", "MarianModel"),
    embed_scale=SCALE,
    embed_norm=None,
    unembed="lm_head",
    towers=(replace(ENCODER, embed_scale=SCALE, embed_norm=None),),
)

MARIAN_DECODER = replace(
    BART_DECODER,
    name="marian_decoder",
    classes=("MarianForCausalLM",),
    embed_scale=SCALE,
    embed_norm=None,
)

# its decoder norms the token embedding before it adds positions, and does not scale it
BLENDERBOT_SMALL = replace(
    BART,
    name="blenderbot_small",
    classes=("BlenderbotSmallForConditionalGeneration", "BlenderbotSmallModel"),
    unembed="lm_head",
    towers=(replace(ENCODER, embed_scale=SCALE),),
)

BLENDERBOT_SMALL_DECODER = replace(
    BART_DECODER, name="blenderbot_small_decoder", classes=("BlenderbotSmallForCausalLM",)
)

ARCHITECTURES = (MARIAN, MARIAN_DECODER, BLENDERBOT_SMALL, BLENDERBOT_SMALL_DECODER)

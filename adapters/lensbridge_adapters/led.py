"""LED: BART with an encoder whose positions attend in windows, and are filled up to whole ones."""

from dataclasses import replace

from lensbridge.spec import Architecture, Mixer, Stack
from lensbridge_adapters.bart import DECODER_DIMS, ENCODER_DIMS, POST_NORM, POST_NORM_CROSS

ENCODER = Stack(
    prefix="encoder",
    dims=replace(ENCODER_DIMS, context="max_encoder_position_embeddings"),
    embed="led.encoder.embed_tokens",
    embed_padding=True,
    pos_embed="led.encoder.embed_positions",
    embed_norm="led.encoder.layernorm_embedding",
    blocks="led.encoder.layers",
    block=replace(
        POST_NORM, attn=None, mixer=Mixer("self_attn", steps=("longformer_self_attn", "output"))
    ),
)

LED = Architecture(
    name="led",
    prefix="decoder",
    classes=("LEDForConditionalGeneration", "LEDForQuestionAnswering", "LEDModel"),
    dims=replace(DECODER_DIMS, context="max_decoder_position_embeddings"),
    embed="led.decoder.embed_tokens",
    pos_embed="led.decoder.embed_positions",
    embed_norm="led.decoder.layernorm_embedding",
    blocks="led.decoder.layers",
    block=POST_NORM_CROSS,
    unembed=("lm_head", "qa_outputs"),
    unembed_bias="final_logits_bias",
    towers=(ENCODER,),
)

ARCHITECTURES = (LED,)

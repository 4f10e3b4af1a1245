"""FSMT: BART's layers on hidden states with positions before the batch, and two vocabularies."""

from dataclasses import replace

from lensbridge.spec import Architecture, Stack
from lensbridge_adapters.bart import DECODER_DIMS, ENCODER_DIMS, POST_NORM, POST_NORM_CROSS
from lensbridge_adapters.marian import SCALE

ENCODER = Stack(
    prefix="encoder",
    dims=replace(ENCODER_DIMS, vocab="src_vocab_size"),
    embed="model.encoder.embed_tokens",
    embed_scale=SCALE,
    pos_embed="model.encoder.embed_positions",
    blocks="model.encoder.layers",
    block=POST_NORM,
    streams="positions_first_in_layers",
)

FSMT = Architecture(
    name="fsmt",
    prefix="decoder",
    classes=("FSMTForConditionalGeneration", "FSMTModel"),
    dims=replace(DECODER_DIMS, vocab="tgt_vocab_size"),
    embed="model.decoder.embed_tokens",
    embed_scale=SCALE,
    pos_embed="model.decoder.embed_positions",
    blocks="model.decoder.layers",
    block=POST_NORM_CROSS,
    streams="positions_first_in_layers",
    unembed="model.decoder.output_projection",
    towers=(ENCODER,),
)

ARCHITECTURES = (FSMT,)

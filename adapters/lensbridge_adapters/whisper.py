"""Whisper: mBART's pre-norm layers; the encoder reads sound through two convolutions."""

from dataclasses import replace

from lensbridge_adapters.mbart import MBART, MBART_DECODER, PRE_NORM_ENCODER

WHISPER = replace(
    MBART,
    name="whisper",
    classes=("WhisperForConditionalGeneration", "WhisperModel"),
    dims=replace(MBART.dims, context="max_target_positions"),
    embed_norm=None,
    unembed="proj_out",
    towers=(
        replace(
            PRE_NORM_ENCODER,
            dims=replace(PRE_NORM_ENCODER.dims, context="max_source_positions"),
            embed=None,  # the activation and a transposition stand between conv2 and the stream
            embed_norm=None,
        ),
    ),
)

WHISPER_DECODER = replace(
    MBART_DECODER,
    name="whisper_decoder",
    classes=("WhisperForCausalLM",),
    dims=WHISPER.dims,
    embed_norm=None,
    unembed="proj_out",
)

ARCHITECTURES = (WHISPER, WHISPER_DECODER)

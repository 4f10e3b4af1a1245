"""mBART: BART with the norms before the branches, and one behind each stack."""

from dataclasses import replace

from lensbridge.spec import Norms
from lensbridge_adapters.bart import BART, BART_DECODER, ENCODER, POST_NORM, POST_NORM_CROSS

PRE_NORM = replace(
    POST_NORM,
    norms=Norms(pre_attn="self_attn_layer_norm", pre_mlp="final_layer_norm"),
    residual="sequential",
)
PRE_NORM_CROSS = replace(
    POST_NORM_CROSS,
    norms=replace(PRE_NORM.norms, pre_cross="encoder_attn_layer_norm"),
    residual="sequential",
)
PRE_NORM_ENCODER = replace(ENCODER, block=PRE_NORM, final_norm="model.encoder.layer_norm")

MBART = replace(
    BART,
    name="mbart",
    classes=(
        "MBartForConditionalGeneration",
        "MBartForSequenceClassification",
        "MBartForQuestionAnswering",
        "MBartModel",
    ),
    block=PRE_NORM_CROSS,
    final_norm="model.decoder.layer_norm",
    towers=(PRE_NORM_ENCODER,),
)

MBART_DECODER = replace(
    BART_DECODER,
    name="mbart_decoder",
    classes=("MBartForCausalLM",),
    block=PRE_NORM,
    final_norm="model.decoder.layer_norm",
)

ARCHITECTURES = (MBART, MBART_DECODER)

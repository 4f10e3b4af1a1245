"""MVP, TrOCR and the decoder of BigBird-Pegasus: BART's and mBART's layers, small changes."""

from dataclasses import replace

from lensbridge_adapters.bart import BART, BART_DECODER, ENCODER
from lensbridge_adapters.marian import SCALE
from lensbridge_adapters.mbart import MBART_DECODER

MVP = replace(
    BART,
    name="mvp",
    classes=(
        "MvpForConditionalGeneration",
        "MvpForSequenceClassification",
        "MvpForQuestionAnswering",
        "MvpModel",
    ),
    embed_scale=SCALE,
    towers=(replace(ENCODER, embed_scale=SCALE),),
)

MVP_DECODER = replace(
    BART_DECODER, name="mvp_decoder", classes=("MvpForCausalLM",), embed_scale=SCALE
)

TROCR = replace(
    BART_DECODER,
    name="trocr",
    classes=("TrOCRForCausalLM",),
    unembed="output_projection",
)

# the norm that is named for the embedding stands behind the last layer
BIGBIRD_PEGASUS_DECODER = replace(
    MBART_DECODER,
    name="bigbird_pegasus_decoder",
    classes=("BigBirdPegasusForCausalLM",),
    embed_norm=None,
    final_norm="model.decoder.layernorm_embedding",
)

ARCHITECTURES = (MVP, MVP_DECODER, TROCR, BIGBIRD_PEGASUS_DECODER)

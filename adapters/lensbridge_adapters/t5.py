"""T5, mT5 and UMT5: pre-norm RMS, a bias by relative position instead of positions, two stacks."""

from dataclasses import replace

from lensbridge.spec import (
    MLP,
    Architecture,
    Attention,
    Block,
    Dims,
    GatedMLP,
    Norms,
    SplitQKV,
    Stack,
)

ATTENTION = Attention(
    "layer.0.SelfAttention",
    qkv=SplitQKV("q", "k", "v"),
    out="o",
    written_by="layer.0.dropout",
    position_bias="relative_attention_bias",
)
CROSS = replace(
    ATTENTION,
    path="layer.1.EncDecAttention",
    written_by="layer.1.dropout",
    position_bias=None,
)
PLAIN = MLP(
    "layer.1.DenseReluDense",
    up="wi",
    down="wo",
    act="dense_act_fn",
    written_by="layer.1.dropout",
)
GATED = GatedMLP(
    "layer.1.DenseReluDense",
    gate="wi_0",
    up="wi_1",
    down="wo",
    act="dense_act_fn",
    written_by="layer.1.dropout",
)

ENCODER_BLOCK = Block(
    norms=Norms(pre_attn="layer.0.layer_norm", pre_mlp="layer.1.layer_norm", kind="RMS"),
    attn=ATTENTION,
    mlp=GATED,
)
LAST_PLAIN = replace(PLAIN, path="layer.2.DenseReluDense", written_by="layer.2.dropout")
LAST_GATED = replace(GATED, path="layer.2.DenseReluDense", written_by="layer.2.dropout")
DECODER_BLOCK = Block(
    norms=replace(
        ENCODER_BLOCK.norms, pre_cross="layer.1.layer_norm", pre_mlp="layer.2.layer_norm"
    ),
    attn=ATTENTION,
    cross=CROSS,
    mlp=LAST_GATED,
)

ENCODER = Stack(
    prefix="encoder",
    dims=Dims(layers="num_layers", d_model="d_model", heads="num_heads", context=None),
    embed="transformer.encoder.embed_tokens",
    blocks="transformer.encoder.block",
    block=(ENCODER_BLOCK, replace(ENCODER_BLOCK, mlp=PLAIN)),
    final_norm="transformer.encoder.final_layer_norm",
)

T5 = Architecture(
    name="t5",
    prefix="decoder",
    classes=("T5ForConditionalGeneration", "T5Model"),
    dims=replace(ENCODER.dims, layers="num_decoder_layers"),
    embed="transformer.decoder.embed_tokens",
    blocks="transformer.decoder.block",
    block=(DECODER_BLOCK, replace(DECODER_BLOCK, mlp=LAST_PLAIN)),
    final_norm="transformer.decoder.final_layer_norm",
    unembed="lm_head",
    # a switch: the scale is one over the square root of d_model, or one
    head_scale="1 / d_model ** (scale_decoder_outputs / 2)",
    towers=(ENCODER,),
)

MT5 = replace(
    T5,
    name="mt5",
    classes=("MT5ForConditionalGeneration", "MT5Model"),
    head_scale=None,
)

UMT5 = replace(T5, name="umt5", classes=("UMT5ForConditionalGeneration", "UMT5Model"))

T5_TASKS = replace(
    T5,
    name="t5_tasks",
    classes=tuple(
        f"{family}For{task}"
        for family in ("T5", "MT5", "UMT5")
        for task in ("SequenceClassification", "QuestionAnswering")
    ),
    unembed=("classification_head.out_proj", "qa_outputs"),
    head_scale=None,
)

T5_ENCODER = Architecture(
    name="t5_encoder",
    classes=(
        "T5EncoderModel",
        "T5ForTokenClassification",
        "MT5EncoderModel",
        "MT5ForTokenClassification",
        "UMT5EncoderModel",
        "UMT5ForTokenClassification",
    ),
    dims=ENCODER.dims,
    embed=ENCODER.embed,
    blocks=ENCODER.blocks,
    block=ENCODER.block,
    final_norm=ENCODER.final_norm,
    unembed="classifier",
)

ARCHITECTURES = (T5, MT5, UMT5, T5_TASKS, T5_ENCODER)

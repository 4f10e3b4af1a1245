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

SELF_ATTENTION = Attention(
    "layer.0.SelfAttention",
    qkv=SplitQKV("q", "k", "v"),
    out="o",
    written_by="layer.0.dropout",
    position_bias="relative_attention_bias",
)

ENCODER_GATED = Block(
    norms=Norms(pre_attn="layer.0.layer_norm", pre_mlp="layer.1.layer_norm", kind="RMS"),
    attn=SELF_ATTENTION,
    mlp=GatedMLP(
        "layer.1.DenseReluDense",
        gate="wi_0",
        up="wi_1",
        down="wo",
        act="dense_act_fn",
        written_by="layer.1.dropout",
    ),
)
ENCODER_PLAIN = replace(
    ENCODER_GATED,
    mlp=MLP(
        "layer.1.DenseReluDense",
        up="wi",
        down="wo",
        act="dense_act_fn",
        written_by="layer.1.dropout",
    ),
)

DECODER_GATED = Block(
    norms=Norms(
        pre_attn="layer.0.layer_norm",
        pre_cross="layer.1.layer_norm",
        pre_mlp="layer.2.layer_norm",
        kind="RMS",
    ),
    attn=SELF_ATTENTION,
    cross=Attention(
        "layer.1.EncDecAttention",
        qkv=SplitQKV("q", "k", "v"),
        out="o",
        written_by="layer.1.dropout",
    ),
    mlp=GatedMLP(
        "layer.2.DenseReluDense",
        gate="wi_0",
        up="wi_1",
        down="wo",
        act="dense_act_fn",
        written_by="layer.2.dropout",
    ),
)
DECODER_PLAIN = replace(
    DECODER_GATED,
    mlp=MLP(
        "layer.2.DenseReluDense",
        up="wi",
        down="wo",
        act="dense_act_fn",
        written_by="layer.2.dropout",
    ),
)

ENCODER = Stack(
    prefix="encoder",
    dims=Dims(
        layers="num_layers", d_model="d_model", heads="num_heads", d_head="d_kv", context=None
    ),
    embed="transformer.encoder.embed_tokens",
    blocks="transformer.encoder.block",
    block=(ENCODER_GATED, ENCODER_PLAIN),
    final_norm="transformer.encoder.final_layer_norm",
)

T5 = Architecture(
    name="t5",
    prefix="decoder",
    classes=(
        "T5ForConditionalGeneration",
        "T5ForSequenceClassification",
        "T5ForQuestionAnswering",
        "T5Model",
        "MT5ForConditionalGeneration",
        "MT5ForSequenceClassification",
        "MT5ForQuestionAnswering",
        "MT5Model",
        "UMT5ForConditionalGeneration",
        "UMT5ForSequenceClassification",
        "UMT5ForQuestionAnswering",
        "UMT5Model",
    ),
    dims=replace(ENCODER.dims, layers="num_decoder_layers"),
    embed="transformer.decoder.embed_tokens",
    blocks="transformer.decoder.block",
    block=(DECODER_GATED, DECODER_PLAIN),
    final_norm="transformer.decoder.final_layer_norm",
    unembed=("lm_head", "classification_head.out_proj", "qa_outputs"),
    towers=(ENCODER,),
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

ARCHITECTURES = (T5, T5_ENCODER)

"""BART and PLBART: post-norm encoder and decoder, MLP on the layer itself, learned positions."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Norms, SplitQKV, Stack

ENCODER_DIMS = Dims(layers="encoder_layers", d_model="d_model", heads="encoder_attention_heads")
DECODER_DIMS = Dims(layers="decoder_layers", d_model="d_model", heads="decoder_attention_heads")

POST_NORM = Block(
    norms=Norms(post_attn="self_attn_layer_norm", post_mlp="final_layer_norm"),
    attn=Attention("self_attn", qkv=SplitQKV(), out="out_proj"),
    mlp=MLP("", up="fc1", down="fc2", act="activation_function", written_by="fc2"),
    residual="post_norm",
)
POST_NORM_CROSS = replace(
    POST_NORM,
    norms=replace(POST_NORM.norms, post_cross="encoder_attn_layer_norm"),
    cross=Attention("encoder_attn", qkv=SplitQKV(), out="out_proj"),
)

ENCODER = Stack(
    prefix="encoder",
    dims=ENCODER_DIMS,
    embed="model.encoder.embed_tokens",
    pos_embed="model.encoder.embed_positions",
    embed_norm="model.encoder.layernorm_embedding",
    blocks="model.encoder.layers",
    block=POST_NORM,
)

BART = Architecture(
    name="bart",
    prefix="decoder",
    classes=(
        "BartForConditionalGeneration",
        "BartForSequenceClassification",
        "BartForQuestionAnswering",
        "BartModel",
        "PLBartForConditionalGeneration",
        "PLBartForSequenceClassification",
        "PLBartModel",
    ),
    dims=DECODER_DIMS,
    embed="model.decoder.embed_tokens",
    pos_embed="model.decoder.embed_positions",
    embed_norm="model.decoder.layernorm_embedding",
    blocks="model.decoder.layers",
    block=POST_NORM_CROSS,
    unembed=("lm_head", "classification_head.out_proj", "qa_outputs"),
    unembed_bias="final_logits_bias",
    towers=(ENCODER,),
)

# the decoder alone: its cross-attention has nothing to read and does not run
BART_DECODER = replace(
    BART,
    name="bart_decoder",
    prefix="blocks",
    classes=("BartForCausalLM", "PLBartForCausalLM"),
    block=POST_NORM,
    unembed="lm_head",
    towers=(),
)

ARCHITECTURES = (BART, BART_DECODER)

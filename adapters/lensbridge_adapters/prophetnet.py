"""ProphetNet: a decoder of several streams, which predict the next token, the one after it, etc.

They are one after another in one row of positions, and attend to the tokens' stream and to
themselves. Their attention calls two kernels, one for the tokens and one for the others.
"""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Mixer, Norms, SplitQKV, Stack

ATTENTION = SplitQKV("query_proj", "key_proj", "value_proj")
ENCODER_BLOCK = Block(
    norms=Norms(post_attn="self_attn_layer_norm", post_mlp="feed_forward_layer_norm"),
    attn=Attention("self_attn", qkv=ATTENTION, out="out_proj"),
    mlp=MLP("feed_forward", up="intermediate", down="output", act="activation_function"),
    residual="post_norm",
)
DECODER_BLOCK = replace(
    ENCODER_BLOCK,
    attn=None,
    mixer=Mixer("self_attn", steps=("query_proj", "key_proj", "value_proj")),
)
CROSS_BLOCK = replace(
    DECODER_BLOCK,
    norms=replace(DECODER_BLOCK.norms, post_cross="cross_attn_layer_norm"),
    cross=Attention("cross_attn", qkv=ATTENTION, out="out_proj"),
)

ENCODER = Stack(
    prefix="encoder",
    dims=Dims(layers="num_encoder_layers", heads="num_encoder_attention_heads"),
    embed="prophetnet.encoder.word_embeddings",
    pos_embed="prophetnet.encoder.position_embeddings",
    embed_norm="prophetnet.encoder.embeddings_layer_norm",
    blocks="prophetnet.encoder.layers",
    block=ENCODER_BLOCK,
)

UNDESCRIBED = {
    "attn": "the tokens' stream and the predicting streams attend through two kernels, so there is "
    "no one pattern"
}

PROPHETNET = Architecture(
    name="prophetnet",
    prefix="decoder",
    classes=("ProphetNetForConditionalGeneration", "ProphetNetModel"),
    dims=Dims(layers="num_decoder_layers", heads="num_decoder_attention_heads"),
    embed="prophetnet.decoder.word_embeddings",
    pos_embed="prophetnet.decoder.position_embeddings",
    embed_norm="prophetnet.decoder.embeddings_layer_norm",
    blocks="prophetnet.decoder.layers",
    block=CROSS_BLOCK,
    streams="end_to_end",
    unembed="lm_head",
    towers=(ENCODER,),
    undescribed=UNDESCRIBED,
)

# the decoder alone: its cross-attention has nothing to read and does not run
PROPHETNET_DECODER = replace(
    PROPHETNET,
    name="prophetnet_decoder",
    prefix="blocks",
    classes=("ProphetNetForCausalLM",),
    block=DECODER_BLOCK,
    towers=(),
)

ARCHITECTURES = (PROPHETNET, PROPHETNET_DECODER)

"""GPT-NeoX Japanese: sequential; the last layer adds a bias to attention's output."""

from lensbridge.spec import MLP, Architecture, Attention, Block, FusedQKV, Norms

GPT_NEOX_JAPANESE = Architecture(
    name="gpt_neox_japanese",
    classes=("GPTNeoXJapaneseForCausalLM", "GPTNeoXJapaneseModel"),
    embed="gpt_neox_japanese.embed_in",
    blocks="gpt_neox_japanese.layers",
    block=Block(
        norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm"),
        attn=Attention(
            "attention",
            qkv=FusedQKV("query_key_value", layout="grouped"),
            out="dense",
            rotary=True,
            out_bias="attention.dense_bias",
        ),
        mlp=MLP("mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
    ),
    final_norm="gpt_neox_japanese.final_layer_norm",
    unembed="embed_out",
)

ARCHITECTURES = (GPT_NEOX_JAPANESE,)

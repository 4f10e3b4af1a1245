"""The first GPT: as GPT-2, but each sum goes through a norm, and there is none at the end."""

from lensbridge.spec import MLP, Architecture, Attention, Block, FusedQKV, Norms

OPENAI_GPT = Architecture(
    name="openai_gpt",
    classes=("OpenAIGPTLMHeadModel", "OpenAIGPTModel"),
    embed="transformer.tokens_embed",
    pos_embed="transformer.positions_embed",
    blocks="transformer.h",
    block=Block(
        norms=Norms(post_attn="ln_1", post_mlp="ln_2"),
        attn=Attention("attn", qkv=FusedQKV("c_attn", layout="blocked"), out="c_proj"),
        # its config calls it gelu
        mlp=MLP("mlp", up="c_fc", down="c_proj", act="gelu_new"),
        residual="post_norm",
    ),
    unembed="lm_head",
)

ARCHITECTURES = (OPENAI_GPT,)

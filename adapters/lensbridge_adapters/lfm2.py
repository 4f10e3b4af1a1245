"""LFM2, also with experts, and LFM3: short gated convolutions and attention with normed heads."""

from dataclasses import replace

from lensbridge.spec import Attention, Block, GatedMLP, Mixer, MoE, Norms, SplitQKV
from lensbridge_adapters.llama import ATTENTION, LLAMA

NORMS = Norms(pre_attn="operator_norm", pre_mlp="ffn_norm", kind="RMS")
MLP = GatedMLP("feed_forward", gate="w1", up="w3", down="w2", act="silu")
EXPERTS = MoE("feed_forward", act="silu")

ATTENTION_BLOCK = Block(
    norms=NORMS,
    attn=Attention(
        "self_attn",
        qkv=SplitQKV(),
        out="out_proj",
        rotary=True,
        q_norm="q_layernorm",
        k_norm="k_layernorm",
    ),
    mlp=MLP,
)
CONV_BLOCK = Block(norms=NORMS, mixer=Mixer("conv", steps=("in_proj",)), mlp=MLP)

LFM2 = replace(
    LLAMA,
    name="lfm2",
    classes=("Lfm2ForCausalLM", "Lfm2Model", "Lfm2MoeForCausalLM", "Lfm2MoeModel"),
    block=(
        replace(ATTENTION_BLOCK, mlp=EXPERTS),
        ATTENTION_BLOCK,
        replace(CONV_BLOCK, mlp=EXPERTS),
        CONV_BLOCK,
    ),
    final_norm="model.embedding_norm",
)

POST_NORMS = replace(NORMS, post_attn="post_operator_norm", post_mlp="post_ffn_norm")
LFM3 = replace(
    LFM2,
    name="lfm3",
    classes=("Lfm3ForCausalLM", "Lfm3Model"),
    block=(
        Block(
            norms=POST_NORMS,
            attn=replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", gated=True),
            mlp=MLP,
        ),
        replace(
            CONV_BLOCK,
            norms=replace(NORMS, post_mlp="post_ffn_norm"),
            mixer=Mixer("conv", steps=("in_proj",), written_by="post_operator_norm"),
        ),
    ),
)

ARCHITECTURES = (LFM2, LFM3)

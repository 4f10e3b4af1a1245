"""Jamba: Mamba layers, an attention layer (without rotary) now and then; dense MLPs and experts."""

from dataclasses import replace

from lensbridge.spec import Attention, Block, Mixer, MoE, Norms, SplitQKV
from lensbridge_adapters.llama import GATED_MLP, LLAMA
from lensbridge_adapters.mamba import NORMED_STEPS

NORMS = Norms(pre_attn="input_layernorm", pre_mlp="pre_ff_layernorm", kind="RMS")
MLP = replace(GATED_MLP, path="feed_forward")
EXPERTS = MoE("feed_forward", router="router")

ATTENTION_BLOCK = Block(
    norms=NORMS, attn=Attention("self_attn", qkv=SplitQKV(), out="o_proj"), mlp=MLP
)
MAMBA_BLOCK = Block(norms=NORMS, mixer=Mixer("mamba", steps=NORMED_STEPS), mlp=MLP)

JAMBA = replace(
    LLAMA,
    name="jamba",
    classes=("JambaForCausalLM", "JambaForSequenceClassification", "JambaModel"),
    block=(
        replace(ATTENTION_BLOCK, mlp=EXPERTS),
        ATTENTION_BLOCK,
        replace(MAMBA_BLOCK, mlp=EXPERTS),
        MAMBA_BLOCK,
    ),
    final_norm="model.final_layernorm",
    unembed=("lm_head", "score"),
)

ARCHITECTURES = (JAMBA,)

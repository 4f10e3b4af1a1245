"""Falcon H1: in every layer Mamba 2 beside attention, both reading one norm; multipliers around."""

from dataclasses import replace

from lensbridge.spec import Block, Mixer
from lensbridge_adapters.jamba import MLP, NORMS
from lensbridge_adapters.llama import ATTENTION, LLAMA

FALCON_H1 = replace(
    LLAMA,
    name="falcon_h1",
    classes=("FalconH1ForCausalLM", "FalconH1Model"),
    embed_scale="embedding_multiplier",
    block=Block(
        norms=NORMS,
        attn=replace(
            ATTENTION,
            scale="attention_out_multiplier",
            in_scale="attention_in_multiplier",
            k_scale="key_multiplier",
        ),
        mixer=Mixer("mamba", steps=("in_proj",), scale="ssm_out_multiplier"),
        mlp=replace(
            MLP,
            written_by="feed_forward.down_proj",
            scale="mlp_multipliers[1]",
            gate_scale="mlp_multipliers[0]",
        ),
    ),
    final_norm="model.final_layernorm",
    logit_scale="lm_head_multiplier",
)

ARCHITECTURES = (FALCON_H1,)

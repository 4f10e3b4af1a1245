"""Doge: the stream is multiplied by channel before each sum; the mask comes from the values."""

from dataclasses import replace

from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA

DOGE = replace(
    LLAMA,
    name="doge",
    classes=("DogeForCausalLM", "DogeForSequenceClassification", "DogeModel"),
    requires={"is_moe": False},
    block=replace(
        BLOCK,
        attn=replace(
            ATTENTION,
            q_norm="q_norm",
            k_norm="k_norm",
            mask_from_v=True,
            skip_scale="input_residual",
        ),
        mlp=replace(GATED_MLP, skip_scale="post_attention_residual"),
    ),
)

ARCHITECTURES = (DOGE,)

"""Granite: Llama with multipliers on the embedding, on what the branches add, and on the logits."""

from dataclasses import replace

from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA

SCALED_ATTENTION = replace(ATTENTION, scale="residual_multiplier")
SCALED_BLOCK = replace(
    BLOCK, attn=SCALED_ATTENTION, mlp=replace(GATED_MLP, scale="residual_multiplier")
)

GRANITE = replace(
    LLAMA,
    name="granite",
    classes=("GraniteForCausalLM", "GraniteModel"),
    embed_scale="embedding_multiplier",
    block=SCALED_BLOCK,
    logit_scale="1 / logits_scaling",
)

# Its sinks scale z behind a softmax that does not see them.
GRANITE_SWA = replace(
    GRANITE,
    name="granite_swa",
    classes=("GraniteSWAForCausalLM", "GraniteSWAModel"),
    block=replace(SCALED_BLOCK, attn=replace(SCALED_ATTENTION, gated=True)),
)

ARCHITECTURES = (GRANITE, GRANITE_SWA)

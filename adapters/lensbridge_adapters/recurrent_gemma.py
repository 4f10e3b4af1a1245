"""RecurrentGemma: gated linear recurrences, one layer in three with local attention."""

from dataclasses import replace

from lensbridge.spec import Block, Mixer, Norms
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA

NORMS = Norms(
    pre_attn="temporal_pre_norm", pre_mlp="channel_pre_norm", kind="RMS", unit_offset=True
)
MLP = replace(GATED_MLP, path="mlp_block", act="hidden_activation")

RECURRENT_GEMMA = replace(
    LLAMA,
    name="recurrent_gemma",
    classes=("RecurrentGemmaForCausalLM", "RecurrentGemmaModel"),
    dims=replace(LLAMA.dims, context=None),
    embed_scale="model.normalizer",
    block=(
        Block(norms=NORMS, attn=replace(ATTENTION, path="temporal_block"), mlp=MLP),
        Block(
            norms=NORMS,
            mixer=Mixer("temporal_block", steps=("linear_y", "linear_x", "rg_lru")),
            mlp=MLP,
        ),
    ),
    final_norm="model.final_norm",
    logit_softcap="logits_soft_cap",
)

ARCHITECTURES = (RECURRENT_GEMMA,)

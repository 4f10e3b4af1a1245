"""Gemma 2: norms before and behind both branches, soft-capped scores and logits.

VaultGemma is the same without the norms behind.
"""

from dataclasses import replace

from lensbridge.spec import Block, Norms
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA

NORMS = Norms(
    pre_attn="input_layernorm",
    post_attn="post_attention_layernorm",
    pre_mlp="pre_feedforward_layernorm",
    post_mlp="post_feedforward_layernorm",
    kind="RMS",
    unit_offset=True,
)
MLP = replace(GATED_MLP, act="hidden_activation")
BLOCK = Block(norms=NORMS, attn=ATTENTION, mlp=MLP)

GEMMA2 = replace(
    LLAMA,
    name="gemma2",
    classes=("Gemma2ForCausalLM", "Gemma2Model"),
    block=BLOCK,
    logit_softcap="final_logit_softcapping",
)

VAULTGEMMA = replace(
    GEMMA2,
    name="vaultgemma",
    classes=("VaultGemmaForCausalLM", "VaultGemmaModel"),
    block=replace(BLOCK, norms=replace(NORMS, post_attn=None, post_mlp=None)),
)

ARCHITECTURES = (GEMMA2, VAULTGEMMA)

"""Bamba: Mamba 2 layers and attention layers, each with a gated MLP."""

from dataclasses import replace

from lensbridge.spec import Block, Mixer
from lensbridge_adapters.jamba import MLP, NORMS
from lensbridge_adapters.llama import ATTENTION, LLAMA

BAMBA = replace(
    LLAMA,
    name="bamba",
    classes=("BambaForCausalLM", "BambaModel"),
    block=(
        Block(norms=NORMS, attn=ATTENTION, mlp=MLP),
        Block(norms=NORMS, mixer=Mixer("mamba", steps=("in_proj", "norm")), mlp=MLP),
    ),
    final_norm="model.final_layernorm",
)

ARCHITECTURES = (BAMBA,)

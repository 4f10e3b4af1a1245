"""Zamba 1 and 2: Mamba layers; one shared attention block feeds some of them.

What that block computes is added to the mixer's input only, never to the stream, and its modules
are the same ones in several layers: the mixer is described, and in those layers its input norm is
not, because it reads more than the stream.
"""

from dataclasses import replace

from lensbridge.spec import Block, Mixer, Norms
from lensbridge_adapters.llama import LLAMA

NORMS = Norms(pre_attn="input_layernorm", kind="RMS")

ZAMBA = replace(
    LLAMA,
    name="zamba",
    classes=("ZambaForCausalLM", "ZambaForSequenceClassification", "ZambaModel"),
    block=(
        Block(norms=NORMS, mixer=Mixer("mamba", steps=("in_proj",))),
        Block(
            norms=Norms(kind="RMS"),
            mixer=Mixer("mamba_decoder.mamba", steps=("in_proj",), fed_more=True),
        ),
    ),
    final_norm="model.final_layernorm",
    unembed=("lm_head", "score"),
)

ZAMBA2 = replace(
    ZAMBA,
    name="zamba2",
    classes=("Zamba2ForCausalLM", "Zamba2ForSequenceClassification", "Zamba2Model"),
    block=(
        Block(norms=NORMS, mixer=Mixer("mamba", steps=("in_proj", "norm"))),
        Block(
            norms=Norms(kind="RMS"),
            mixer=Mixer("mamba_decoder.mamba", steps=("in_proj", "norm"), fed_more=True),
        ),
    ),
)

ARCHITECTURES = (ZAMBA, ZAMBA2)

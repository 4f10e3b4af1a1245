"""Zamba 1 and 2: Mamba layers; one shared attention block feeds some of them.

What that block computes is added to the mixer's input only, never to the stream, and its modules
are the same ones in several layers. Its attention is read at the kernel, because it reads the
embeddings beside the stream, and Zamba 2 adds adapters to its projections. The norm of the mixer's
input is not described in those layers, because it reads more than the stream.
"""

from dataclasses import replace

from lensbridge.spec import Attention, Block, KernelQKV, Mixer, Norms
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
            mixer=Mixer(
                "mamba_decoder.mamba",
                steps=("in_proj",),
                fed_more=True,
                feeder=Attention("shared_transf.self_attn", qkv=KernelQKV(), out="o_proj"),
            ),
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
            mixer=Mixer(
                "mamba_decoder.mamba",
                steps=("in_proj", "norm"),
                fed_more=True,
                feeder=Attention("shared_transformer.self_attn", qkv=KernelQKV(), out="o_proj"),
            ),
        ),
    ),
)

ARCHITECTURES = (ZAMBA, ZAMBA2)

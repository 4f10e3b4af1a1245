"""DiffLlama: Llama with the difference of two attentions, which is described only at its ends."""

from dataclasses import replace

from lensbridge.spec import Mixer
from lensbridge_adapters.llama import BLOCK, LLAMA

DIFFLLAMA = replace(
    LLAMA,
    name="diffllama",
    classes=("DiffLlamaForCausalLM", "DiffLlamaModel"),
    # Each value half goes through both of a pair's patterns, so heads are no unit of it.
    block=replace(BLOCK, attn=None, mixer=Mixer("self_attn", steps=("q_proj", "k_proj", "v_proj"))),
)

ARCHITECTURES = (DIFFLLAMA,)

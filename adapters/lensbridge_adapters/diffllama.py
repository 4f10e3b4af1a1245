"""DiffLlama: Llama with the difference of two attentions, which is described only at its ends."""

from dataclasses import replace

from lensbridge.spec import Mixer
from lensbridge_adapters.llama import BLOCK, LLAMA

DIFFLLAMA = replace(
    LLAMA,
    name="diffllama",
    classes=("DiffLlamaForCausalLM", "DiffLlamaModel"),
    block=replace(BLOCK, attn=None, mixer=Mixer("self_attn", steps=("q_proj", "k_proj", "v_proj"))),
    undescribed={
        "attn": "its kernel runs twice, once for each half of the value heads, and what is "
        "projected back is the normed difference of two heads, so no head writes alone"
    },
)

ARCHITECTURES = (DIFFLLAMA,)

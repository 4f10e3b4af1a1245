"""BitNet: Llama with a norm on z and one on the neurons, before the projections that read them."""

from dataclasses import replace

from lensbridge.spec import Dims
from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA

BITNET = replace(
    LLAMA,
    name="bitnet",
    classes=("BitNetForCausalLM", "BitNetModel"),
    dims=Dims(kv_heads="num_key_value_heads"),
    block=replace(
        BLOCK,
        attn=replace(ATTENTION, gated=True),
        mlp=replace(GATED_MLP, inner_norm="ffn_sub_norm"),
    ),
)

ARCHITECTURES = (BITNET,)

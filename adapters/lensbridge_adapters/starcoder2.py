"""StarCoder 2: Llama with LayerNorms and an MLP that is not gated."""

from dataclasses import replace

from lensbridge.spec import MLP
from lensbridge_adapters.llama import BLOCK, LLAMA, NORMS

STARCODER2 = replace(
    LLAMA,
    name="starcoder2",
    classes=("Starcoder2ForCausalLM", "Starcoder2Model"),
    block=replace(BLOCK, norms=replace(NORMS, kind="LN"), mlp=MLP("mlp", up="c_fc", down="c_proj")),
)

ARCHITECTURES = (STARCODER2,)

"""HRM-Text: two stacks that run in turn, several times; Llama's layers with gated attention."""

from dataclasses import replace

from lensbridge.spec import Dims, Stack
from lensbridge_adapters.llama import ATTENTION, BLOCK, LLAMA

DIMS = Dims(layers="num_layers_per_stack")
HRM_BLOCK = replace(BLOCK, attn=replace(ATTENTION, gated=True))

LOW = Stack(
    prefix="low.blocks",
    dims=DIMS,
    blocks="model.L_module.layers",
    block=HRM_BLOCK,
    cycles="H_cycles * L_cycles",
    final_norm="model.L_module.final_norm",
)

HRM_TEXT = replace(
    LLAMA,
    name="hrm_text",
    classes=("HrmTextForCausalLM", "HrmTextModel"),
    dims=DIMS,
    embed_mixed=True,
    blocks="model.H_module.layers",
    block=HRM_BLOCK,
    cycles="H_cycles",
    final_norm="model.H_module.final_norm",
    towers=(LOW,),
)

ARCHITECTURES = (HRM_TEXT,)

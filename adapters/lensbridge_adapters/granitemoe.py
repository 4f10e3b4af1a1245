"""Granite with experts, with or without a shared MLP that stands beside them in the block."""

from dataclasses import replace

from lensbridge.spec import FusedGatedMLP, MoE
from lensbridge_adapters.granite import GRANITE, SCALED_ATTENTION, SCALED_BLOCK

ALONE = replace(
    SCALED_BLOCK, mlp=MoE("block_sparse_moe", router="router", scale="residual_multiplier")
)
BESIDE_SHARED = replace(
    SCALED_BLOCK,
    mlp=MoE(
        "",
        router="block_sparse_moe.router",
        experts="block_sparse_moe.experts",
        shared=FusedGatedMLP("shared_mlp", gate_up="input_linear", down="output_linear"),
        written_by=("block_sparse_moe", "shared_mlp"),
        scale="residual_multiplier",
    ),
)

GRANITEMOE = replace(
    GRANITE,
    name="granitemoe",
    classes=("GraniteMoeForCausalLM", "GraniteMoeModel"),
    block=ALONE,
)

GRANITEMOESHARED = replace(
    GRANITE,
    name="granitemoeshared",
    classes=("GraniteMoeSharedForCausalLM", "GraniteMoeSharedModel"),
    block=(BESIDE_SHARED, ALONE),
)

# Its sinks scale z behind a softmax that does not see them.
GATED = replace(SCALED_ATTENTION, gated=True)
GRANITEMOE_SWA = replace(
    GRANITE,
    name="granitemoe_swa",
    classes=("GraniteMoeSWAForCausalLM", "GraniteMoeSWAModel"),
    block=(replace(BESIDE_SHARED, attn=GATED), replace(ALONE, attn=GATED)),
)

ARCHITECTURES = (GRANITEMOE, GRANITEMOESHARED, GRANITEMOE_SWA)

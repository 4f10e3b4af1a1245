"""Granite 4: Mamba 2 or attention, rotary or not; a shared MLP, with or without experts."""

from dataclasses import replace

from lensbridge.spec import FusedGatedMLP, Mixer
from lensbridge_adapters.granite import GRANITE, SCALED_ATTENTION
from lensbridge_adapters.granitemoe import BESIDE_SHARED

SHARED_ONLY = replace(
    BESIDE_SHARED,
    mlp=FusedGatedMLP(
        "shared_mlp", gate_up="input_linear", down="output_linear", scale="residual_multiplier"
    ),
)
MAMBA = Mixer("mamba", steps=("in_proj", "norm"), scale="residual_multiplier")
MAMBA_BLOCKS = (
    replace(BESIDE_SHARED, attn=None, mixer=MAMBA),
    replace(SHARED_ONLY, attn=None, mixer=MAMBA),
)

GRANITEMOEHYBRID = replace(
    GRANITE,
    name="granitemoehybrid",
    classes=("GraniteMoeHybridForCausalLM", "GraniteMoeHybridModel"),
    requires={"position_embedding_type": "rope"},
    block=(BESIDE_SHARED, SHARED_ONLY, *MAMBA_BLOCKS),
)

UNROTATED = replace(SCALED_ATTENTION, rotary=False)
NOPE_BLOCKS = (
    replace(BESIDE_SHARED, attn=UNROTATED),
    replace(SHARED_ONLY, attn=UNROTATED),
    *MAMBA_BLOCKS,
)
GRANITEMOEHYBRID_NOPE = replace(
    GRANITEMOEHYBRID,
    name="granitemoehybrid_nope",
    requires={"position_embedding_type": "nope"},
    block=NOPE_BLOCKS,
)
GRANITEMOEHYBRID_UNSAID = replace(
    GRANITEMOEHYBRID_NOPE,
    name="granitemoehybrid_unsaid",
    requires={"position_embedding_type": None},
)

ARCHITECTURES = (GRANITEMOEHYBRID, GRANITEMOEHYBRID_NOPE, GRANITEMOEHYBRID_UNSAID)

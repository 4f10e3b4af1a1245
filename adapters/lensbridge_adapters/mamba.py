"""Mamba, Falcon Mamba and Mamba 2: every layer is a norm and one state-space mixer."""

from dataclasses import replace

from lensbridge.spec import Architecture, Block, Dims, Mixer, Norms

MAMBA_MIXER = Mixer("mixer", steps=("in_proj", "x_proj"))
MAMBA2_MIXER = Mixer("mixer", steps=("in_proj", "norm"))

MAMBA_BLOCK = Block(norms=Norms(pre_attn="norm", kind="RMS"), mixer=MAMBA_MIXER)

MAMBA = Architecture(
    name="mamba",
    classes=("MambaForCausalLM", "MambaModel"),
    dims=Dims(context=None),
    embed="backbone.embeddings",
    blocks="backbone.layers",
    block=MAMBA_BLOCK,
    final_norm="backbone.norm_f",
    unembed="lm_head",
)

NORMED_STEPS = ("in_proj", "x_proj", "dt_layernorm", "b_layernorm", "c_layernorm")
FALCON_MAMBA = replace(
    MAMBA,
    name="falcon_mamba",
    classes=("FalconMambaForCausalLM", "FalconMambaModel"),
    block=replace(MAMBA_BLOCK, mixer=Mixer("mixer", steps=NORMED_STEPS)),
)

MAMBA2 = replace(
    MAMBA,
    name="mamba2",
    classes=("Mamba2ForCausalLM", "Mamba2Model"),
    block=replace(MAMBA_BLOCK, mixer=MAMBA2_MIXER),
)

ARCHITECTURES = (MAMBA, FALCON_MAMBA, MAMBA2)

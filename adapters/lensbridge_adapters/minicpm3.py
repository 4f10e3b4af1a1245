"""MiniCPM 3: latent attention (MLA), a dense MLP, and what the branches add scaled by depth."""

from dataclasses import replace

from lensbridge.spec import Dims, LatentQKV
from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA

SCALE = "scale_depth / sqrt(num_hidden_layers)"

MINICPM3 = replace(
    LLAMA,
    name="minicpm3",
    classes=("MiniCPM3ForCausalLM", "MiniCPM3Model"),
    dims=Dims(),
    block=replace(
        BLOCK,
        attn=replace(ATTENTION, qkv=LatentQKV(), scale=SCALE),
        mlp=replace(GATED_MLP, scale=SCALE),
    ),
    head_scale="1 / logits_scaling",
)

ARCHITECTURES = (MINICPM3,)

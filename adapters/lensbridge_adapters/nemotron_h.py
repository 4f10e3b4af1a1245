"""Nemotron-H: every layer is one of attention (without rotary), experts, a plain MLP or Mamba 2."""

from lensbridge.spec import (
    MLP,
    Architecture,
    Attention,
    Block,
    Dims,
    Mixer,
    MoE,
    Norms,
    SplitQKV,
)

PRE_MIX = Norms(pre_attn="norm", kind="RMS")
PRE_MLP = Norms(pre_mlp="norm", kind="RMS")

NEMOTRON_H = Architecture(
    name="nemotron_h",
    classes=("NemotronHForCausalLM", "NemotronHModel"),
    dims=Dims(kv_heads="num_key_value_heads"),
    embed="model.embeddings",
    blocks="model.layers",
    block=(
        Block(norms=PRE_MIX, attn=Attention("mixer", qkv=SplitQKV(), out="o_proj")),
        Block(
            norms=PRE_MLP,
            mlp=MoE(
                "mixer",
                shared=MLP("shared_experts", up="up_proj", down="down_proj", act="mlp_hidden_act"),
                act="mlp_hidden_act",
            ),
        ),
        Block(
            norms=PRE_MLP,
            mlp=MLP("mixer", up="up_proj", down="down_proj", act="mlp_hidden_act"),
        ),
        Block(norms=PRE_MIX, mixer=Mixer("mixer", steps=("in_proj", "norm"))),
    ),
    final_norm="model.norm_f",
    unembed="lm_head",
)

ARCHITECTURES = (NEMOTRON_H,)

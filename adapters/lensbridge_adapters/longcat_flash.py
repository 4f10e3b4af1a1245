"""LongCat Flash: a layer is attention, an MLP, attention and an MLP, with experts beside.

`blocks` has the first attention and MLP of each layer, and `second.blocks` the other two.
`shortcut.blocks` has the experts, which read what the first MLP reads, and whose output is added at
the end of the layer. Each of the three begins and ends where the whole layer does.
"""

from dataclasses import replace

from lensbridge.spec import Attention, Block, Dims, LatentQKV, MoE, Norms, Stack
from lensbridge_adapters.llama import GATED_MLP, LLAMA

DIMS = Dims(layers="num_layers")
QKV = LatentQKV(kv_scale="sqrt(hidden_size / kv_lora_rank)")
Q_SCALE = "sqrt(hidden_size / q_lora_rank)"


def half(i: int) -> Block:
    """One attention and the MLP after it."""
    pre_attn, pre_mlp = f"input_layernorm.{i}", f"post_attention_layernorm.{i}"
    return Block(
        residual=None,
        norms=Norms(pre_attn=pre_attn, pre_mlp=pre_mlp, kind="RMS"),
        attn=Attention(f"self_attn.{i}", qkv=QKV, out="o_proj", rotary=True, q_scale=Q_SCALE),
        mlp=replace(GATED_MLP, path=f"mlps.{i}"),
    )


SHORTCUT = Block(
    residual=None,
    norms=Norms(pre_mlp="post_attention_layernorm.0", kind="RMS"),
    mlp=MoE("mlp", router="router"),
)

LONGCAT_FLASH = replace(
    LLAMA,
    name="longcat_flash",
    classes=("LongcatFlashForCausalLM", "LongcatFlashModel"),
    dims=DIMS,
    block=half(0),
    towers=(
        Stack(prefix="second.blocks", blocks="model.layers", block=half(1), dims=DIMS),
        Stack(prefix="shortcut.blocks", blocks="model.layers", block=SHORTCUT, dims=DIMS),
    ),
    undescribed={"residual": "a layer adds two attentions, two MLPs and its experts one by one"},
)

ARCHITECTURES = (LONGCAT_FLASH,)

"""ViT and DeiT: pre-norm, split QKV, plain MLP.

Class token and positions are bare parameters of the embeddings module, so its output, which has
them, is what the points call the embedding.
"""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Norms, SplitQKV

VIT = Architecture(
    name="vit",
    classes=("ViTForImageClassification", "ViTModel"),
    dims=Dims(context=None),
    embed="vit.embeddings",
    blocks="vit.layers",
    block=Block(
        norms=Norms(pre_attn="layernorm_before", pre_mlp="layernorm_after"),
        attn=Attention("attention", qkv=SplitQKV(), out="o_proj"),
        mlp=MLP("mlp", up="fc1", down="fc2"),
    ),
    final_norm="vit.layernorm",
    pooler="vit.pooler",
    unembed="classifier",
)

DEIT = replace(
    VIT,
    name="deit",
    classes=("DeiTForImageClassification", "DeiTModel"),
    embed="deit.embeddings",
    blocks="deit.layers",
    final_norm="deit.layernorm",
    pooler="deit.pooler",
)

ARCHITECTURES = (VIT, DEIT)

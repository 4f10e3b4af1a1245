"""ViT and DeiT: pre-norm, split QKV, plain MLP; class token and positions are bare parameters."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Norms, SplitQKV

VIT = Architecture(
    name="vit",
    classes=("ViTForImageClassification", "ViTModel"),
    dims=Dims(context=None),
    embed="vit.embeddings.patch_embeddings",
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
    classes=("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTModel"),
    embed="deit.embeddings.patch_embeddings",
    blocks="deit.layers",
    final_norm="deit.layernorm",
    pooler="deit.pooler",
    unembed=("classifier", "cls_classifier"),
)

ARCHITECTURES = (VIT, DEIT)

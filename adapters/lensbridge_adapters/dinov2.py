"""DINOv2: ViT whose branches are scaled per channel before they are added; two kinds of MLP."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, GatedMLP, Norms, SplitQKV

DINOV2_BLOCK = Block(
    norms=Norms(pre_attn="norm1", pre_mlp="norm2"),
    attn=Attention("attention", qkv=SplitQKV(), out="o_proj", scale="layer_scale1.lambda1"),
    mlp=MLP("mlp", up="fc1", down="fc2", scale="layer_scale2.lambda1"),
)

DINOV2 = Architecture(
    name="dinov2",
    classes=("Dinov2ForImageClassification", "Dinov2Model"),
    dims=Dims(context=None),
    embed="dinov2.embeddings",
    blocks="dinov2.encoder.layer",
    block=(
        DINOV2_BLOCK,
        replace(
            DINOV2_BLOCK,
            mlp=GatedMLP(
                "mlp",
                gate="gate_proj",
                up="up_proj",
                down="down_proj",
                scale="layer_scale2.lambda1",
            ),
        ),
    ),
    final_norm="dinov2.layernorm",
    unembed="classifier",
)

ARCHITECTURES = (DINOV2,)

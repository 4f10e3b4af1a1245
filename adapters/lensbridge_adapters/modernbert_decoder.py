"""ModernBERT's decoder: fused gated MLP, a transform before the head, no first attention norm."""

from dataclasses import replace

from lensbridge.spec import Architecture, Attention, Block, FusedGatedMLP, Norms, SplitQKV

NORMS = Norms(pre_attn="attn_norm", pre_mlp="mlp_norm")
BLOCK = Block(
    norms=NORMS,
    attn=Attention("attn", qkv=SplitQKV(), out="Wo", rotary=True),
    mlp=FusedGatedMLP("mlp", gate_up="Wi", down="Wo", act="hidden_activation"),
)

MODERNBERT_DECODER = Architecture(
    name="modernbert_decoder",
    classes=("ModernBertDecoderForCausalLM", "ModernBertDecoderModel"),
    embed="model.embeddings.tok_embeddings",
    embed_norm="model.embeddings.norm",
    blocks="model.layers",
    # the first layer reads the embedding, which is normed already
    block=(BLOCK, replace(BLOCK, norms=replace(NORMS, pre_attn=None))),
    final_norm="model.final_norm",
    head_hidden="lm_head",
    unembed="decoder",
)

ARCHITECTURES = (MODERNBERT_DECODER,)

"""ModernBERT: pre-norm encoder, fused QKV, rotary, fused gated MLP; layer 0 has no input norm."""

from dataclasses import replace

from lensbridge.spec import Architecture, Attention, Block, FusedGatedMLP, FusedQKV, Norms

MODERNBERT_BLOCK = Block(
    norms=Norms(pre_attn="attn_norm", pre_mlp="mlp_norm"),
    attn=Attention("attn", qkv=FusedQKV("Wqkv", layout="blocked"), out="Wo", rotary=True),
    mlp=FusedGatedMLP("mlp", gate_up="Wi", down="Wo", act="hidden_activation"),
)

MODERNBERT = Architecture(
    name="modernbert",
    classes=(
        "ModernBertForMaskedLM",
        "ModernBertForSequenceClassification",
        "ModernBertForTokenClassification",
        "ModernBertForQuestionAnswering",
        "ModernBertForMultipleChoice",
        "ModernBertModel",
    ),
    embed="model.embeddings.tok_embeddings",
    embed_norm="model.embeddings.norm",
    blocks="model.layers",
    block=(MODERNBERT_BLOCK, replace(MODERNBERT_BLOCK, norms=Norms(pre_mlp="mlp_norm"))),
    final_norm="model.final_norm",
    head_hidden="head",
    unembed=("decoder", "classifier"),
)

ARCHITECTURES = (MODERNBERT,)

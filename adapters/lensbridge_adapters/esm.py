"""ESM protein models: pre-norm encoder; ESM-2 rotates, ESM-1 has learned positions."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

ESM_BLOCK = Block(
    norms=Norms(pre_attn="attention.LayerNorm", pre_mlp="LayerNorm"),
    attn=Attention(
        "attention",
        qkv=SplitQKV("self.query", "self.key", "self.value"),
        out="output.dense",
        rotary=True,
        written_by="attention.output.dropout",
    ),
    mlp=MLP(
        "",
        up="intermediate.dense",
        down="output.dense",
        act="gelu",  # not in the config
        written_by="output.dropout",
    ),
)

ESM2 = Architecture(
    name="esm2",
    classes=(
        "EsmForMaskedLM",
        "EsmForSequenceClassification",
        "EsmForTokenClassification",
        "EsmModel",
    ),
    requires={"position_embedding_type": "rotary"},
    embed="esm.embeddings.word_embeddings",
    embed_norm="esm.embeddings.layer_norm",
    blocks="esm.encoder.layer",
    block=ESM_BLOCK,
    final_norm="esm.encoder.emb_layer_norm_after",
    pooler="esm.pooler",
    head_hidden="lm_head.layer_norm",
    unembed=("lm_head.decoder", "classifier.out_proj", "classifier"),
    unembed_bias="lm_head.bias",
)

ESM1 = replace(
    ESM2,
    name="esm1",
    requires={"position_embedding_type": "absolute"},
    pos_embed="esm.embeddings.position_embeddings",
    block=Block(
        norms=ESM_BLOCK.norms,
        attn=Attention(
            "attention",
            qkv=SplitQKV("self.query", "self.key", "self.value"),
            out="output.dense",
            written_by="attention.output.dropout",
        ),
        mlp=ESM_BLOCK.mlp,
    ),
)

ARCHITECTURES = (ESM2, ESM1)

"""ALBERT: post-norm layers, one of which runs again and again; narrow embeddings, projected."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

ALBERT = Architecture(
    name="albert",
    classes=(
        "AlbertForMaskedLM",
        "AlbertForPreTraining",
        "AlbertForSequenceClassification",
        "AlbertForTokenClassification",
        "AlbertForQuestionAnswering",
        "AlbertForMultipleChoice",
        "AlbertModel",
    ),
    # several groups would each repeat on their own
    requires={"num_hidden_groups": 1},
    embed="albert.embeddings.word_embeddings",
    pos_embed="albert.embeddings.position_embeddings",
    embed_norm="albert.embeddings.LayerNorm",
    blocks="albert.encoder.albert_layer_groups.0.albert_layers",
    block=Block(
        norms=Norms(post_attn="attention.LayerNorm", post_mlp="full_layer_layer_norm"),
        attn=Attention(
            "attention",
            qkv=SplitQKV("query", "key", "value"),
            out="dense",
            written_by="attention.output_dropout",
        ),
        mlp=MLP("", up="ffn", down="ffn_output", written_by="ffn_output"),
        residual="post_norm",
    ),
    pooler="albert.pooler_activation",
    head_hidden="predictions.LayerNorm",
    unembed=("predictions.decoder", "classifier", "qa_outputs"),
)

ARCHITECTURES = (ALBERT,)

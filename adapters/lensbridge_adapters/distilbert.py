"""DistilBERT: BERT's post-norm layers, flatter, without pooler and token types."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Norms, SplitQKV

DISTILBERT = Architecture(
    name="distilbert",
    classes=(
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForTokenClassification",
        "DistilBertForQuestionAnswering",
        "DistilBertForMultipleChoice",
        "DistilBertModel",
    ),
    dims=Dims(layers="n_layers", d_model="dim", heads="n_heads"),
    embed="distilbert.embeddings.word_embeddings",
    pos_embed="distilbert.embeddings.position_embeddings",
    embed_norm="distilbert.embeddings.LayerNorm",
    blocks="distilbert.transformer.layer",
    block=Block(
        norms=Norms(post_attn="sa_layer_norm", post_mlp="output_layer_norm"),
        attn=Attention("attention", qkv=SplitQKV("q_lin", "k_lin", "v_lin"), out="out_lin"),
        mlp=MLP("ffn", up="lin1", down="lin2", act="activation"),
        residual="post_norm",
    ),
    head_hidden="vocab_layer_norm",
    unembed=("vocab_projector", "classifier", "qa_outputs"),
)

ARCHITECTURES = (DISTILBERT,)

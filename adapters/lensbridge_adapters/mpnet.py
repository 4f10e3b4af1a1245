"""MPNet: post-norm as BERT; all layers share one bias by relative position, held by the encoder."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

MPNET = Architecture(
    name="mpnet",
    classes=(
        "MPNetForMaskedLM",
        "MPNetForSequenceClassification",
        "MPNetForTokenClassification",
        "MPNetForQuestionAnswering",
        "MPNetForMultipleChoice",
        "MPNetModel",
    ),
    embed="mpnet.embeddings.word_embeddings",
    pos_embed="mpnet.embeddings.position_embeddings",
    embed_norm="mpnet.embeddings.LayerNorm",
    blocks="mpnet.encoder.layer",
    block=Block(
        norms=Norms(post_attn="attention.LayerNorm", post_mlp="output.LayerNorm"),
        attn=Attention(
            "attention",
            qkv=SplitQKV("attn.q", "attn.k", "attn.v"),
            out="attn.o",
            written_by="attention.dropout",
        ),
        mlp=MLP("", up="intermediate.dense", down="output.dense", written_by="output.dropout"),
        residual="post_norm",
    ),
    pooler="mpnet.pooler",
    head_hidden="lm_head.layer_norm",
    unembed=("lm_head.decoder", "classifier.out_proj", "classifier", "qa_outputs"),
)

ARCHITECTURES = (MPNET,)

"""Reformer: reversible layers with two streams, and attention to hashed or local chunks."""

from lensbridge.spec import MLP, Architecture, Block, Mixer, Norms

REFORMER = Architecture(
    name="reformer",
    classes=(
        "ReformerModelWithLMHead",
        "ReformerForMaskedLM",
        "ReformerForSequenceClassification",
        "ReformerForQuestionAnswering",
        "ReformerModel",
    ),
    embed="reformer.embeddings.word_embeddings",
    pos_embed="reformer.embeddings.position_embeddings",
    blocks="reformer.encoder.layers",
    block=Block(
        norms=Norms(pre_attn="attention.layer_norm", pre_mlp="feed_forward.layer_norm"),
        mixer=Mixer("attention.self_attention", written_by="attention.output"),
        mlp=MLP("feed_forward", up="dense.dense", down="output.dense"),
        residual="reversible",
    ),
    final_norm="reformer.encoder.layer_norm",
    unembed=("lm_head.decoder", "classifier.out_proj", "qa_outputs"),
    undescribed={
        "attn": "chunks of positions attend to one another through code of its own, without a "
        "kernel that can be watched",
    },
)

ARCHITECTURES = (REFORMER,)

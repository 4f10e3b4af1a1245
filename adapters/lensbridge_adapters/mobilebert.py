"""MobileBERT: narrow layers between projections from and to the stream, with four MLPs each."""

from lensbridge.spec import Architecture, Block

MOBILEBERT = Architecture(
    name="mobilebert",
    classes=(
        "MobileBertForMaskedLM",
        "MobileBertForPreTraining",
        "MobileBertForSequenceClassification",
        "MobileBertForTokenClassification",
        "MobileBertForQuestionAnswering",
        "MobileBertForMultipleChoice",
        "MobileBertModel",
    ),
    embed="mobilebert.embeddings.word_embeddings",
    pos_embed="mobilebert.embeddings.position_embeddings",
    embed_mixed=True,
    blocks="mobilebert.encoder.layer",
    block=Block(residual=None),
    pooler="mobilebert.pooler",
    unembed=("classifier", "qa_outputs"),
    undescribed={
        "residual": "a layer projects the stream to a narrower one, to which attention and four "
        "MLPs add, and projects the last sum back",
        "attn": "it reads and writes the narrower stream inside the layer",
        "mixer": "attention reads and writes the narrower stream inside the layer",
        "mlp": "its four MLPs read and write the narrower stream inside the layer",
        "unembed": "two weights make the logits, the embedding's and one for the rest of the "
        "stream's width, and no module gives them",
    },
)

ARCHITECTURES = (MOBILEBERT,)

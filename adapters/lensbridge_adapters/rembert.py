"""RemBERT: BERT's layers between narrow input embeddings and a wide output embedding."""

from dataclasses import replace

from lensbridge_adapters.bert import BERT

REMBERT = replace(
    BERT,
    name="rembert",
    classes=(
        "RemBertForMaskedLM",
        "RemBertForCausalLM",
        "RemBertForSequenceClassification",
        "RemBertForTokenClassification",
        "RemBertForQuestionAnswering",
        "RemBertForMultipleChoice",
        "RemBertModel",
    ),
    embed="rembert.embeddings.word_embeddings",
    pos_embed="rembert.embeddings.position_embeddings",
    embed_norm="rembert.embeddings.LayerNorm",
    blocks="rembert.encoder.layer",
    pooler="rembert.pooler",
    head_hidden="cls.predictions.LayerNorm",
    unembed=("cls.predictions.decoder", "classifier", "qa_outputs"),
)

ARCHITECTURES = (REMBERT,)

"""ELECTRA: BERT's layers; embeddings may be narrower than the stream and are then projected."""

from dataclasses import replace

from lensbridge_adapters.bert import BERT

ELECTRA = replace(
    BERT,
    name="electra",
    classes=(
        "ElectraForMaskedLM",
        "ElectraForPreTraining",
        "ElectraForCausalLM",
        "ElectraForSequenceClassification",
        "ElectraForTokenClassification",
        "ElectraForQuestionAnswering",
        "ElectraForMultipleChoice",
        "ElectraModel",
    ),
    embed="electra.embeddings.word_embeddings",
    pos_embed="electra.embeddings.position_embeddings",
    embed_norm="electra.embeddings.LayerNorm",
    blocks="electra.encoder.layer",
    pooler=None,
    head_hidden="generator_predictions",
    unembed=(
        "generator_lm_head",
        "classifier.out_proj",
        "classifier",
        "qa_outputs",
    ),
)

ARCHITECTURES = (ELECTRA,)

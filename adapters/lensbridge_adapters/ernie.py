"""ERNIE and RoCBERT: BERT's layers and heads under another name."""

from dataclasses import replace

from lensbridge_adapters.bert import BERT

ERNIE = replace(
    BERT,
    name="ernie",
    classes=(
        "ErnieForMaskedLM",
        "ErnieForPreTraining",
        "ErnieForCausalLM",
        "ErnieForNextSentencePrediction",
        "ErnieForSequenceClassification",
        "ErnieForTokenClassification",
        "ErnieForQuestionAnswering",
        "ErnieForMultipleChoice",
        "ErnieModel",
    ),
    embed="ernie.embeddings.word_embeddings",
    pos_embed="ernie.embeddings.position_embeddings",
    embed_norm="ernie.embeddings.LayerNorm",
    blocks="ernie.encoder.layer",
    pooler="ernie.pooler",
)

ROC_BERT = replace(
    BERT,
    name="roc_bert",
    classes=(
        "RoCBertForMaskedLM",
        "RoCBertForCausalLM",
        "RoCBertForSequenceClassification",
        "RoCBertForTokenClassification",
        "RoCBertForQuestionAnswering",
        "RoCBertForMultipleChoice",
        "RoCBertModel",
    ),
    # the sound and the shape of a character are mixed in before positions are added
    embed="roc_bert.embeddings.word_embeddings",
    embed_mixed=True,
    pos_embed="roc_bert.embeddings.position_embeddings",
    embed_norm="roc_bert.embeddings.LayerNorm",
    blocks="roc_bert.encoder.layer",
    pooler="roc_bert.pooler",
)

ARCHITECTURES = (ERNIE, ROC_BERT)

"""RoBERTa and what shares its shape (XLM-R, CamemBERT, data2vec text): BERT's layers, own heads."""

from dataclasses import replace

from lensbridge_adapters.bert import BERT

ROBERTA = replace(
    BERT,
    name="roberta",
    classes=(
        "RobertaForMaskedLM",
        "RobertaForCausalLM",
        "RobertaForSequenceClassification",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
        "RobertaForMultipleChoice",
        "RobertaModel",
        "XLMRobertaForMaskedLM",
        "XLMRobertaForCausalLM",
        "XLMRobertaForSequenceClassification",
        "XLMRobertaForTokenClassification",
        "XLMRobertaForQuestionAnswering",
        "XLMRobertaForMultipleChoice",
        "XLMRobertaModel",
        "CamembertForMaskedLM",
        "CamembertForCausalLM",
        "CamembertForSequenceClassification",
        "CamembertForTokenClassification",
        "CamembertForQuestionAnswering",
        "CamembertForMultipleChoice",
        "CamembertModel",
    ),
    embed="roberta.embeddings.word_embeddings",
    pos_embed="roberta.embeddings.position_embeddings",
    embed_norm="roberta.embeddings.LayerNorm",
    blocks="roberta.encoder.layer",
    pooler="roberta.pooler",
    head_hidden="lm_head.layer_norm",
    unembed=("lm_head.decoder", "classifier.out_proj", "classifier", "qa_outputs"),
)

DATA2VEC_TEXT = replace(
    ROBERTA,
    name="data2vec_text",
    classes=(
        "Data2VecTextForMaskedLM",
        "Data2VecTextForCausalLM",
        "Data2VecTextForSequenceClassification",
        "Data2VecTextForTokenClassification",
        "Data2VecTextForQuestionAnswering",
        "Data2VecTextForMultipleChoice",
        "Data2VecTextModel",
    ),
    embed="data2vec_text.embeddings.word_embeddings",
    pos_embed="data2vec_text.embeddings.position_embeddings",
    embed_norm="data2vec_text.embeddings.LayerNorm",
    blocks="data2vec_text.encoder.layer",
    pooler="data2vec_text.pooler",
)

ARCHITECTURES = (ROBERTA, DATA2VEC_TEXT)

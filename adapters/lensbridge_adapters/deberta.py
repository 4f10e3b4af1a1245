"""DeBERTa v1 to v3: BERT's layers with attention that also scores relative positions.

v1 has one projection for queries, keys and values, and adds biases to queries and values after it.
"""

from dataclasses import replace

from lensbridge.spec import Attention, FusedQKV, SplitQKV
from lensbridge_adapters.bert import BERT, BERT_BLOCK

DEBERTA_V2 = replace(
    BERT,
    name="deberta_v2",
    classes=(
        "DebertaV2ForMaskedLM",
        "DebertaV2ForSequenceClassification",
        "DebertaV2ForTokenClassification",
        "DebertaV2ForQuestionAnswering",
        "DebertaV2ForMultipleChoice",
        "DebertaV2Model",
    ),
    requires={"position_biased_input": True},
    embed="deberta.embeddings.word_embeddings",
    pos_embed="deberta.embeddings.position_embeddings",
    embed_norm="deberta.embeddings.LayerNorm",
    blocks="deberta.encoder.layer",
    block=replace(
        BERT_BLOCK,
        attn=Attention(
            "attention",
            qkv=SplitQKV("self.query_proj", "self.key_proj", "self.value_proj"),
            out="output.dense",
            written_by="attention.output.dropout",
        ),
    ),
    pooler="pooler",
    unembed=("cls.predictions.decoder", "classifier", "qa_outputs"),
)

# v3 has no positions in the embeddings
DEBERTA_V3 = replace(
    DEBERTA_V2,
    name="deberta_v3",
    requires={"position_biased_input": False},
    pos_embed=None,
)

DEBERTA = replace(
    DEBERTA_V2,
    name="deberta",
    classes=(
        "DebertaForMaskedLM",
        "DebertaForSequenceClassification",
        "DebertaForTokenClassification",
        "DebertaForQuestionAnswering",
        "DebertaModel",
    ),
    block=replace(
        BERT_BLOCK,
        attn=Attention(
            "attention",
            qkv=FusedQKV(
                "self.in_proj", layout="grouped", q_bias="self.q_bias", v_bias="self.v_bias"
            ),
            out="output.dense",
            written_by="attention.output.dropout",
        ),
    ),
)

# as published: no positions in the embeddings either
DEBERTA_RELATIVE = replace(
    DEBERTA,
    name="deberta_relative",
    requires={"position_biased_input": False},
    pos_embed=None,
)

ARCHITECTURES = (DEBERTA_V2, DEBERTA_V3, DEBERTA, DEBERTA_RELATIVE)

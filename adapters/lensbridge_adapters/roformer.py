"""RoFormer: BERT's layers with rotary positions instead of learned ones."""

from dataclasses import replace

from lensbridge.spec import Attention, SplitQKV
from lensbridge_adapters.bert import BERT, BERT_BLOCK

ROFORMER = replace(
    BERT,
    name="roformer",
    classes=(
        "RoFormerForMaskedLM",
        "RoFormerForCausalLM",
        "RoFormerForSequenceClassification",
        "RoFormerForTokenClassification",
        "RoFormerForQuestionAnswering",
        "RoFormerForMultipleChoice",
        "RoFormerModel",
    ),
    # with rotary_value the values are rotated too, and hook_v would not be what the pattern weighs
    requires={"rotary_value": False},
    embed="roformer.embeddings.word_embeddings",
    pos_embed=None,
    embed_norm="roformer.embeddings.LayerNorm",
    blocks="roformer.encoder.layer",
    block=replace(
        BERT_BLOCK,
        attn=Attention(
            "attention",
            qkv=SplitQKV("self.query", "self.key", "self.value"),
            out="output.dense",
            rotary=True,
            written_by="attention.output.dropout",
        ),
    ),
    pooler=None,
    unembed=("cls.predictions.decoder", "classifier.out_proj", "classifier", "qa_outputs"),
)

ARCHITECTURES = (ROFORMER,)

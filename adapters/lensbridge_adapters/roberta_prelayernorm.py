"""BERT shapes with the norms before the branches: RoBERTa-PreLayerNorm, XLM-R XL, Megatron-BERT."""

from dataclasses import replace

from lensbridge.spec import MLP, Norms
from lensbridge_adapters.bert import BERT, BERT_BLOCK
from lensbridge_adapters.roberta import ROBERTA

ROBERTA_PRELAYERNORM = replace(
    ROBERTA,
    name="roberta_prelayernorm",
    classes=(
        "RobertaPreLayerNormForMaskedLM",
        "RobertaPreLayerNormForCausalLM",
        "RobertaPreLayerNormForSequenceClassification",
        "RobertaPreLayerNormForTokenClassification",
        "RobertaPreLayerNormForQuestionAnswering",
        "RobertaPreLayerNormForMultipleChoice",
        "RobertaPreLayerNormModel",
    ),
    embed="roberta_prelayernorm.embeddings.word_embeddings",
    pos_embed="roberta_prelayernorm.embeddings.position_embeddings",
    embed_norm="roberta_prelayernorm.embeddings.LayerNorm",
    blocks="roberta_prelayernorm.encoder.layer",
    block=replace(
        BERT_BLOCK,
        norms=Norms(pre_attn="attention.LayerNorm", pre_mlp="intermediate.LayerNorm"),
        residual="sequential",
    ),
    final_norm="roberta_prelayernorm.LayerNorm",
    pooler="roberta_prelayernorm.pooler",
)

XLM_ROBERTA_XL = replace(
    ROBERTA,
    name="xlm_roberta_xl",
    classes=(
        "XLMRobertaXLForMaskedLM",
        "XLMRobertaXLForCausalLM",
        "XLMRobertaXLForSequenceClassification",
        "XLMRobertaXLForTokenClassification",
        "XLMRobertaXLForQuestionAnswering",
        "XLMRobertaXLForMultipleChoice",
        "XLMRobertaXLModel",
    ),
    embed_norm=None,
    block=replace(
        BERT_BLOCK,
        norms=Norms(pre_attn="attention.self_attn_layer_norm", pre_mlp="LayerNorm"),
        mlp=MLP("", up="intermediate.dense", down="output.dense", written_by="output.dense"),
        residual="sequential",
    ),
    final_norm="roberta.encoder.LayerNorm",
)

MEGATRON_BERT = replace(
    BERT,
    name="megatron_bert",
    classes=(
        "MegatronBertForMaskedLM",
        "MegatronBertForPreTraining",
        "MegatronBertForCausalLM",
        "MegatronBertForNextSentencePrediction",
        "MegatronBertForSequenceClassification",
        "MegatronBertForTokenClassification",
        "MegatronBertForQuestionAnswering",
        "MegatronBertForMultipleChoice",
        "MegatronBertModel",
    ),
    embed_norm=None,
    block=replace(
        BERT_BLOCK, norms=Norms(pre_attn="attention.ln", pre_mlp="ln"), residual="sequential"
    ),
    final_norm="bert.encoder.ln",
)

ARCHITECTURES = (ROBERTA_PRELAYERNORM, XLM_ROBERTA_XL, MEGATRON_BERT)

"""BERT: post-norm encoder, split QKV, plain MLP, learned positions; pretraining and task heads."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

BERT_BLOCK = Block(
    norms=Norms(post_attn="attention.output.LayerNorm", post_mlp="output.LayerNorm"),
    attn=Attention(
        "attention",
        qkv=SplitQKV("self.query", "self.key", "self.value"),
        out="output.dense",
        written_by="attention.output.dropout",
    ),
    mlp=MLP("", up="intermediate.dense", down="output.dense", written_by="output.dropout"),
    residual="post_norm",
)

BERT = Architecture(
    name="bert",
    classes=(
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertLMHeadModel",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "BertForMultipleChoice",
        "BertModel",
    ),
    embed="bert.embeddings.word_embeddings",
    pos_embed="bert.embeddings.position_embeddings",
    embed_norm="bert.embeddings.LayerNorm",
    blocks="bert.encoder.layer",
    block=BERT_BLOCK,
    pooler="bert.pooler",
    head_hidden="cls.predictions.transform",
    unembed=("cls.predictions.decoder", "cls.seq_relationship", "classifier", "qa_outputs"),
)

BERT_GENERATION = replace(
    BERT,
    name="bert_generation",
    classes=("BertGenerationDecoder", "BertGenerationEncoder"),
    pooler=None,
    head_hidden=None,
    unembed="lm_head.decoder",
)

ARCHITECTURES = (BERT, BERT_GENERATION)

"""XLM and FlauBERT: a layer is one module of each of four lists, with a norm of each sum."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

XLM_BLOCK = Block(
    norms=Norms(post_attn="layer_norm1", post_mlp="layer_norm2"),
    attn=Attention("attentions", qkv=SplitQKV("q_lin", "k_lin", "v_lin"), out="out_lin"),
    mlp=MLP("ffns", up="lin1", down="lin2", act="gelu"),
    residual="post_norm",
)

XLM = Architecture(
    name="xlm",
    classes=(
        "XLMWithLMHeadModel",
        "XLMForSequenceClassification",
        "XLMForTokenClassification",
        "XLMForQuestionAnsweringSimple",
        "XLMForMultipleChoice",
        "XLMModel",
    ),
    embed="transformer.embeddings",
    pos_embed="transformer.position_embeddings",
    embed_norm="transformer.layer_norm_emb",
    embed_overwritten=True,  # by the mask
    blocks=(
        "transformer.attentions",
        "transformer.layer_norm1",
        "transformer.ffns",
        "transformer.layer_norm2",
    ),
    block=XLM_BLOCK,
    unembed=("pred_layer.proj", "classifier", "qa_outputs", "sequence_summary.summary"),
    requires={"gelu_activation": True},
)

XLM_RELU = replace(
    XLM,
    name="xlm_relu",
    block=replace(XLM_BLOCK, mlp=MLP("ffns", up="lin1", down="lin2", act="relu")),
    requires={"gelu_activation": False},
)

FLAUBERT_CLASSES = tuple(one.replace("XLM", "Flaubert") for one in XLM.classes)

FLAUBERT = replace(
    XLM,
    name="flaubert",
    classes=FLAUBERT_CLASSES,
    requires={"gelu_activation": True, "pre_norm": False},
)

ARCHITECTURES = (XLM, XLM_RELU, FLAUBERT)

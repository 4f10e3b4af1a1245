"""XLNet: positions before the batch, and attention whose projections are parameters.

Its scores are products of queries and keys, plus biases and relative positions. With
`target_mapping` a second stream of queries goes through the same modules; points are refused there.
"""

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

XLNET = Architecture(
    name="xlnet",
    classes=(
        "XLNetLMHeadModel",
        "XLNetForTokenClassification",
        "XLNetForQuestionAnsweringSimple",
        "XLNetForSequenceClassification",
        "XLNetModel",
    ),
    embed="transformer.word_embedding",
    blocks="transformer.layer",
    block=Block(
        norms=Norms(post_attn="rel_attn.layer_norm", post_mlp="ff.layer_norm"),
        attn=Attention("rel_attn", qkv=SplitQKV("q", "k", "v"), out="o", written_by="rel_attn.o"),
        mlp=MLP("ff", up="layer_1", down="layer_2", act="ff_activation", written_by="ff.layer_2"),
        residual="post_norm",
    ),
    streams="positions_first",
    pooler="sequence_summary",
    unembed=("lm_loss", "logits_proj", "classifier", "qa_outputs"),
)

ARCHITECTURES = (XLNET,)

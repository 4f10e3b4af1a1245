"""X-MOD: RoBERTa with an adapter for each language behind its MLPs.

What adapters add is not described. With `pre_norm` one norm runs before the MLP and again before
the adapter, so that the MLP is not described either.
"""

from dataclasses import replace

from lensbridge.spec import MLP, Norms
from lensbridge_adapters.bert import BERT_BLOCK
from lensbridge_adapters.roberta import ROBERTA

BLOCK = replace(
    BERT_BLOCK,
    norms=Norms(pre_mlp="attention.output.LayerNorm"),
    mlp=MLP("", up="intermediate.dense", down="output.dense", written_by="output.dense"),
    residual=None,
)
ADAPTERS = "each language has an adapter behind the MLPs that adds to the stream"

XMOD = replace(
    ROBERTA,
    name="xmod",
    classes=(
        "XmodForMaskedLM",
        "XmodForCausalLM",
        "XmodForSequenceClassification",
        "XmodForTokenClassification",
        "XmodForQuestionAnswering",
        "XmodForMultipleChoice",
        "XmodModel",
    ),
    requires={"pre_norm": False},
    block=BLOCK,
    undescribed={"residual": ADAPTERS},
)

XMOD_PRE_NORM = replace(
    XMOD,
    name="xmod_pre_norm",
    requires={"pre_norm": True},
    block=replace(BLOCK, norms=Norms(pre_attn="attention.output.LayerNorm"), mlp=None),
    final_norm="roberta.encoder.LayerNorm",
    undescribed={
        "residual": ADAPTERS,
        "mlp": "the norm before it runs a second time before the adapter",
    },
)

ARCHITECTURES = (XMOD, XMOD_PRE_NORM)

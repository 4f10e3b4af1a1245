"""X-MOD: RoBERTa with language adapters behind its MLPs; the inside of a layer is not described."""

from dataclasses import replace

from lensbridge.spec import Block
from lensbridge_adapters.roberta import ROBERTA

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
    block=Block(residual=None),
    undescribed={
        "residual": "each language has an adapter behind the MLPs that adds to the stream",
        "attn": "only the layers' input and output are described",
        "mlp": "only the layers' input and output are described",
    },
)

ARCHITECTURES = (XMOD,)

"""EuroBERT: Llama's layers, read in both directions."""

from dataclasses import replace

from lensbridge_adapters.llama import LLAMA

EUROBERT = replace(
    LLAMA,
    name="eurobert",
    classes=(
        "EuroBertForMaskedLM",
        "EuroBertForSequenceClassification",
        "EuroBertForTokenClassification",
        "EuroBertModel",
    ),
    head_hidden="activation",
    unembed=("lm_head", "classifier"),
)

ARCHITECTURES = (EUROBERT,)

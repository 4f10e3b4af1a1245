"""Evaluations that run offline: indirect object identification, induction, loss on tokens."""

from lensbridge.evals.ioi import IOIDataset
from lensbridge.evals.scores import (
    evaluate_on_dataset,
    induction_loss,
    ioi_eval,
    repeated_tokens,
    sanity_check,
)
from lensbridge.evals.sentence_encoder import Prompts
from lensbridge.evals.sentences import Sample

__all__ = [
    "IOIDataset",
    "Prompts",
    "Sample",
    "evaluate_on_dataset",
    "induction_loss",
    "ioi_eval",
    "repeated_tokens",
    "sanity_check",
]

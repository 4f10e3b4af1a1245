"""Three classic analyses: activation patching, attribution to heads, induction.

They need a causal language model with a tokenizer and a norm before the head, and they return
numbers; `lensbridge.demo.report` draws them.
"""

from lensbridge.demo.workflows.attribution import Attribution, attribute_heads
from lensbridge.demo.workflows.induction import Induction, repeated_words, score_induction
from lensbridge.demo.workflows.patching import PATCHED, Patching, patch_positions

__all__ = [
    "PATCHED",
    "Attribution",
    "Induction",
    "Patching",
    "attribute_heads",
    "patch_positions",
    "repeated_words",
    "score_induction",
]

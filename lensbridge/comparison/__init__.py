"""What a fine-tune changed: the weights of two models, and what they compute on prompts."""

from lensbridge.comparison.comparing import compare
from lensbridge.comparison.outputs import OutputChange, PromptChanges, TokenChange
from lensbridge.comparison.result import Comparison
from lensbridge.comparison.weights import WeightChange, WeightChanges

__all__ = [
    "Comparison",
    "OutputChange",
    "PromptChanges",
    "TokenChange",
    "WeightChange",
    "WeightChanges",
    "compare",
]

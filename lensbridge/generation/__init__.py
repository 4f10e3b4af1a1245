"""`generate`: HuggingFace's own generation with hooks, interventions and a cache."""

from lensbridge.generation.comparing import Continuations
from lensbridge.generation.options import FrequencyPenalty, ReturnType

__all__ = ["Continuations", "FrequencyPenalty", "ReturnType"]

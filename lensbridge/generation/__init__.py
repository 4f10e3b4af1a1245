"""`generate`: HuggingFace's own generation with hooks, interventions and a cache."""

from lensbridge.generation.comparing import Continuations
from lensbridge.generation.options import ReturnType
from lensbridge.generation.processors import FrequencyPenalty

__all__ = ["Continuations", "FrequencyPenalty", "ReturnType"]

"""HookedModel: a model that runs with hooks, caches, and shows its weights."""

from lensbridge.hooked_model.model import HookedModel
from lensbridge.hooked_model.running import LogitsAndLoss, OneTensor, Result, ReturnType

__all__ = ["HookedModel", "LogitsAndLoss", "OneTensor", "Result", "ReturnType"]

"""LensModel: a HuggingFace model with the field's names and tools. What `load` returns."""

from lensbridge.analysis.methods import AnalysisMethods
from lensbridge.causal.methods import CausalMethods
from lensbridge.editing.methods import EditingMethods
from lensbridge.experiments.methods import ExperimentMethods
from lensbridge.generation.methods import GenerationMethods
from lensbridge.gradients.methods import GradientMethods
from lensbridge.hooked_model import HookedModel, LogitsAndLoss, Result, ReturnType
from lensbridge.interventions.methods import InterventionMethods
from lensbridge.patching.methods import SweepMethods
from lensbridge.saes.methods import SAEMethods

__all__ = ["LensModel", "LogitsAndLoss", "Result", "ReturnType"]


class LensModel(
    SAEMethods,
    ExperimentMethods,
    CausalMethods,
    GenerationMethods,
    InterventionMethods,
    EditingMethods,
    SweepMethods,
    GradientMethods,
    AnalysisMethods,
    HookedModel,
):
    """A HuggingFace model, not modified, with named activations and weights.

    `HookedModel` has runs, hooks, caches, weights, text and tokens; each other base class adds the
    methods of one tool. `docs/api/model.md` lists all of them by task.

    Attributes:
        hf_model: the HuggingFace model itself.
        cfg: its sizes and choices under the field's names.
        tokens: its tokenizer with the rules for BOS and padding.
    """

"""Composition scores of any two factored matrices; of a model: `model.all_composition_scores`."""

from lensbridge.weights.circuits.composition import CompositionScores, composition_scores

__all__ = ["CompositionScores", "composition_scores"]

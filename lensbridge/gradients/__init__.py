"""Gradients of any scalar at any points."""

from lensbridge.gradients.points import Gradients, GradientsAndActivations

__all__ = ["Gradients", "GradientsAndActivations"]

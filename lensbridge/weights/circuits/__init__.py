"""Heads as products of their weights, and other quantities that need no run."""

from lensbridge.weights.circuits.methods import CircuitMethods

__all__ = ["CircuitMethods"]

"""What heads do as matrices, and other readings of the weights alone."""

from lensbridge.weights.circuits.methods import CircuitMethods

__all__ = ["CircuitMethods"]

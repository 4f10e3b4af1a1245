"""What heads do as matrices, and other readings of the weights alone."""

from lensbridge.circuits.methods import CircuitMethods

__all__ = ["CircuitMethods"]

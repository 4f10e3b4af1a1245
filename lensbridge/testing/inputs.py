"""Random inputs for any transformers model; see `lensbridge.inputs.random`."""

from lensbridge.inputs.random import inputs_for

__all__ = ["inputs_for"]

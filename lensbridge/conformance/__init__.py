"""Checks by behaviour that a model is what its description says."""

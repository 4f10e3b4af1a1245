"""Experiments through nnsight: on this machine, or on NDIF's servers with models that are there."""

from lensbridge.engines.nnsight.lens import NNsight

__all__ = ["NNsight"]

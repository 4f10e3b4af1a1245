"""ActivationCache: the activations of one run, each stored once under its canonical name."""

from lensbridge.cache.activations import ActivationCache

__all__ = ["ActivationCache"]

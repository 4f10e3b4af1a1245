"""Engines: who computes the shards of a harvest, where one process is not enough.

spec.run("activations", engine=lensbridge.engines.Ray(actors=8, gpus=1))
"""

from lensbridge.engines.ray import Ray

__all__ = ["Ray"]

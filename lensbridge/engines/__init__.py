"""Engines: who computes the shards of a harvest, where one process is not enough, and who runs
experiments on models that are elsewhere.

spec.run("activations", engine=lensbridge.engines.Ray(actors=8, gpus=1))
spec.run("activations", engine=lensbridge.engines.VLLM(llm))
lensbridge.engines.NNsight("meta-llama/Llama-3.1-70B", remote=True).run(experiment)
"""

from lensbridge.engines.nnsight import NNsight
from lensbridge.engines.ray import Ray
from lensbridge.engines.serving import RayServe
from lensbridge.engines.vllm import VLLM

__all__ = ["VLLM", "NNsight", "Ray", "RayServe"]

"""Stages of a pipeline (`torch.distributed.pipelining`): the layers that one process has."""

from lensbridge.pipelines.microbatches import StepCache
from lensbridge.pipelines.model import StageModel

__all__ = ["StageModel", "StepCache"]

"""Stages of a pipeline (`torch.distributed.pipelining`): the layers that one process has."""

from lensbridge.pipelines.model import StageModel, open_stage

__all__ = ["StageModel", "open_stage"]

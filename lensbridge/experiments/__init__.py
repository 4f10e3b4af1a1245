"""Experiments as data: inputs, points, interventions, a metric. Every engine runs them."""

from lensbridge.experiments.experiment import Experiment
from lensbridge.experiments.result import ExperimentResult
from lensbridge.metrics import (
    KL,
    BoundMetric,
    Logit,
    LogitDiff,
    LogProb,
    Loss,
    Metric,
    MetricRun,
    Prob,
    Rank,
)

__all__ = [
    "KL",
    "BoundMetric",
    "Experiment",
    "ExperimentResult",
    "LogProb",
    "Logit",
    "LogitDiff",
    "Loss",
    "Metric",
    "MetricRun",
    "Prob",
    "Rank",
]

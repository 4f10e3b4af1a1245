"""Declared metrics: what is measured of a run's logits, as data that can be written to JSON."""

from lensbridge.metrics.metric import BoundMetric, Metric, MetricRun, Reduction
from lensbridge.metrics.texts import KL, Loss
from lensbridge.metrics.tokens import Logit, LogitDiff, LogProb, Prob, Rank

__all__ = [
    "KL",
    "BoundMetric",
    "LogProb",
    "Logit",
    "LogitDiff",
    "Loss",
    "Metric",
    "MetricRun",
    "Prob",
    "Rank",
    "Reduction",
]

METRICS: dict[str, type[Metric]] = {
    one.__name__: one for one in (Logit, LogitDiff, LogProb, Prob, Rank, KL, Loss)
}
"""The kinds of metrics by name, as JSON has them."""

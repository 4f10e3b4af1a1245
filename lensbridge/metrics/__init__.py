"""Declared metrics: what is measured of a run's logits, as data that can be written to JSON."""

from lensbridge.metrics.binding import bound, run_of
from lensbridge.metrics.metric import BoundMetric, Metric, MetricRun, Reduction
from lensbridge.metrics.texts import KL, Loss
from lensbridge.metrics.tokens import Logit, LogitDiff, LogProb, Prob, Rank

__all__ = [
    "KL",
    "METRICS",
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
    "bound",
    "run_of",
]

METRICS: dict[str, type[Metric]] = {
    one.__name__: one for one in (Logit, LogitDiff, LogProb, Prob, Rank, KL, Loss)
}
"""The kinds of metrics by name, as JSON has them."""

"""The result of direct logit attribution."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.analysis.frames import data_frame

Unit = Literal["component", "layer", "head", "neuron"]
"""The size of the parts that a logit is split into."""

REMAINDER = "remainder"
"""The label of the rest of the stream, where units are heads or neurons."""


@dataclass(frozen=True)
class DirectLogitAttribution:
    """The contribution of each unit to a logit, or to the difference of two.

    `attribution.sum(0) + bias` is the logit, before a soft-cap where the model has one.

    Args:
        attribution: the contribution of each unit.
        labels: the names of the units.
        unit: the kind of units.
        bias: the part that no unit contributes: the biases of the final norm and the head.

    Shapes: attribution `[unit, batch]`, or `[unit, batch, pos]`; bias the same without `unit`.
    Units: logits.
    """

    attribution: Tensor
    labels: list[str]
    unit: Unit
    bias: Tensor

    @property
    def logit(self) -> Tensor:
        """The logit (or difference) that was split, before any soft-cap.

        Shapes: `[batch]`, or `[batch, pos]`
        """
        return self.attribution.sum(0) + self.bias

    @property
    def cumulative(self) -> Tensor:
        """The running sum of the contributions over units, bias included.

        Shapes: `[unit, batch]`, or `[unit, batch, pos]`
        """
        return self.attribution.cumsum(0) + self.bias

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The units that contribute most, averaged over examples and positions, largest first.

        The remainder is left out.
        """
        units = len(self.labels) - (self.labels[-1] == REMAINDER)
        means = self.attribution[:units].flatten(1).mean(1)
        values, order = means.topk(min(k, units))
        return [
            (self.labels[i], value)
            for i, value in zip(order.tolist(), values.tolist(), strict=True)
        ]

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row for each unit, example and position.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return data_frame(self._lines())

    def _lines(self) -> Iterator[dict[str, Any]]:
        axes = ("batch", "pos")[: self.attribution.ndim - 1]
        for label, values in zip(self.labels, self.attribution, strict=True):
            for place in torch.cartesian_prod(*map(torch.arange, values.shape)).view(
                -1, values.ndim
            ):
                index = place.tolist()
                where = dict(zip(axes, index, strict=True))
                yield {"label": label, **where, "attribution": float(values[tuple(index)])}

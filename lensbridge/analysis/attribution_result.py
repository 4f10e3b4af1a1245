"""The result of direct logit attribution."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.analysis.frames import data_frame
from lensbridge.errors import InputError
from lensbridge.viz import Bars, Drawn

Unit = Literal["component", "layer", "head", "neuron"]
"""The size of the parts that a logit is split into."""

REMAINDER = "remainder"
"""The label of the rest of the stream, where units are heads or neurons."""


@dataclass(frozen=True, repr=False)
class DirectLogitAttribution(Drawn):
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

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.attribution.shape[1:]))
        mean = float(self.logit.detach().float().mean())
        return (
            f"DirectLogitAttribution({len(self.labels)} {self.unit}s and a bias, of [{shape}] "
            f"logits, {mean:.3g} on average)"
        )

    def plot(self, k: int = 20, example: int | None = None, *, title: str = "") -> Bars:
        """Bars of the contributions, averaged over examples and positions, and of their sum.

        Args:
            k: how many units have a bar: all in their order if there are no more, otherwise those
                with the largest absolute contributions. One bar has the others together.
            example: one example instead of the average.
            title: written above the picture.

        Raises:
            InputError: there is no such example, or k is below 1.
        """
        if k < 1:
            raise InputError(f"k is a number of units, 1 or more, not {k}.")
        bias, *units = self._averaged(example)
        order = sorted(range(len(units)), key=lambda i: -abs(units[i]))
        order = order[:k] if len(units) > k else list(range(len(units)))
        bars = [(self.labels[i], units[i]) for i in order]
        if len(units) > k:
            rest = sum(units) - sum(value for _, value in bars)
            bars.append((f"the other {len(units) - k} {self.unit}s", rest))
        bars += [("bias", bias), ("= logit", sum(units) + bias)]
        names, values = zip(*bars, strict=True)
        title = title or f"Direct logit attribution by {self.unit}"
        return Bars(title, values, names, unit="logits")

    def _averaged(self, example: int | None) -> list[float]:
        """The bias and the contribution of each unit, on average or of one example."""
        count = self.attribution.shape[1]
        if example is not None and not -count <= example < count:
            raise InputError(f"There is no example {example}: there are {count}.")
        table = torch.cat([self.bias[None], self.attribution]).detach().double()
        table = table if example is None else table[:, example, None]
        return table.flatten(1).mean(1).tolist()

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

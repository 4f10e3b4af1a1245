"""Integrated gradients: how much each token of an input contributes to a number."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from lensbridge.cache.capture import Keep
from lensbridge.errors import InputError
from lensbridge.gradients.backward import Objective
from lensbridge.gradients.points import Gradients, GradientsAndActivations, gradients_of
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback, Hook
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.points.names import Name
from lensbridge.sweeps.as_tensor import AsTensor
from lensbridge.viz import Drawn, plot
from lensbridge.viz.picture import Picture


@dataclass(frozen=True, eq=False, repr=False)
class IntegratedGradients(Drawn, AsTensor):
    """What each token contributes to a number. Torch and arithmetic take it as a tensor.

    Args:
        values: the contribution of each token, `[batch, pos]`.
        entries: of each entry of the activation, in its shape; `values` are sums of these.
        value: the number for the input, `[]`.
        baseline_value: the number for the baseline, `[]`.
        positions: the tokens as labels.
    """

    values: Tensor
    entries: Tensor
    value: Tensor
    baseline_value: Tensor
    positions: PositionLabels | None = None

    @property
    def gap(self) -> Tensor:
        """How far the sum of the contributions is from `value - baseline_value`: with enough steps
        it is nearly 0."""
        return self.values.sum() - (self.value - self.baseline_value)

    def __repr__(self) -> str:
        axes = ", ".join(map(str, self.values.shape))
        return f"IntegratedGradients([{axes}], value {self.value:.4f}, gap {self.gap:.2g})"

    def plot(self, example: int = 0, title: str = "") -> Picture:
        """The tokens of one example, coloured by what they contribute.

        Args:
            example: which one.
            title: above the picture.
        """
        values = self.values[example]
        numbers = range(len(values))
        texts = list(map(str, numbers)) if self.positions is None else self.positions.along(numbers)
        return plot(values, x=texts, kind="text", title=title or "integrated gradients")


def integrated_gradients(
    model: HookedModel,
    input: Any,
    of: Objective = "loss",
    *,
    at: Name = "embed",
    baseline: Any = None,
    steps: int = 32,
    **forward: Any,
) -> IntegratedGradients:
    """How much each token contributes to a number: the gradient, averaged along the straight line
    from a baseline to the input, times the difference of the two.

    The contributions add up to the change of the number if there are enough steps; `gap` says by
    how much they miss it. From zeros a model with RMS norms needs very many: its norms undo the
    length of an embedding, so that nearly all changes close to zero. Begin at another input there.

    Args:
        model: the model.
        input: as in `forward`.
        of: as in `model.gradients`: a function of logits that gives one number, a declared metric,
            or "loss".
        at: the point whose activation goes along the line; the embeddings by default.
        baseline: where the line begins: None for zeros, a tensor that broadcasts to the activation,
            or another input with as many positions.
        steps: how many gradients are averaged (points of a Gauss-Legendre rule).
        forward: other arguments of `forward`.

    Shapes: `values` `[batch, pos]`
    Units: those of the number.

    Raises:
        InputError: a baseline of another shape, or an objective that does not give one number.

    Source: Sundararajan, Taly and Yan 2017, Axiomatic Attribution for Deep Networks.

    Example:
        >>> import lensbridge
        >>> from lensbridge.experiments import LogitDiff
        >>> model = lensbridge.load("demo")
        >>> text = "The Eiffel Tower is in the city of"
        >>> found = model.integrated_gradients(text, LogitDiff(" Paris", " Rome"))
        >>> found.shape, bool(abs(found.gap) < 0.001)
        (torch.Size([1, 9]), True)
    """
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is 1 or more, not {steps!r}.")
    line = _Line.between(model, input, of, model.vocabulary.canonical(at), baseline, forward)
    nodes, weights = leggauss(steps)
    total = torch.zeros_like(line.end)
    for node, weight in zip(nodes, weights, strict=True):
        total += line.gradient((float(node) + 1) / 2) * (float(weight) / 2)
    entries = (line.end - line.start) * total
    axes = model.engine.sites[line.point].axes.split()
    summed = [i for i, letter in enumerate(axes) if letter not in "bp1"]
    return IntegratedGradients(
        entries.sum(summed) if summed else entries,
        entries,
        line.value,
        line.at(0.0).value,
        line.positions,
    )


@dataclass(frozen=True, eq=False)
class _Line:
    """Runs in which one activation is somewhere between two values."""

    model: HookedModel
    input: Any
    of: Objective
    point: str
    start: Tensor
    end: Tensor
    value: Tensor
    positions: PositionLabels | None
    forward: dict[str, Any]

    @classmethod
    def between(
        cls,
        model: HookedModel,
        input: Any,
        of: Objective,
        point: str,
        baseline: Any,
        forward: dict[str, Any],
    ) -> "_Line":
        found = gradients_of(model, input, point, of, Keep(), return_activations=True, **forward)
        assert isinstance(found, GradientsAndActivations)
        cache = found.activations
        end = cache[point]
        labels = PositionLabels.of(model.tokens, cache.tokens, cache.attention_mask)
        start = _start(model, baseline, point, end, forward)
        return cls(model, input, of, point, start, end, found.value, labels, forward)

    def at(self, share: float) -> Gradients | GradientsAndActivations:
        """The number and its gradient at a share of the way."""
        here = self.start + share * (self.end - self.start)

        def edit(value: Tensor, hook: Hook) -> Tensor:
            return here.to(value).clone()

        with self.model.listening([Callback(self.point, "edit", edit, self.point, True)]):
            return gradients_of(self.model, self.input, self.point, self.of, Keep(), **self.forward)

    def gradient(self, share: float) -> Tensor:
        """The gradient at a share of the way."""
        return self.at(share).gradients[self.point]


def _start(
    model: HookedModel, baseline: Any, point: str, end: Tensor, forward: dict[str, Any]
) -> Tensor:
    """The activation where the line begins.

    Raises:
        InputError: it does not fit the activation of the input.
    """
    if baseline is None:
        return torch.zeros_like(end)
    if isinstance(baseline, Tensor) and baseline.is_floating_point():
        given = baseline.to(end)
    else:
        with torch.no_grad():
            _, cache = model.run_with_cache(
                baseline, names_filter=point, return_type=None, **forward
            )
        given = cache[point]
    try:
        return given.expand_as(end)
    except RuntimeError as error:
        raise InputError(
            f"The baseline has shape {list(given.shape)} at {point}, and the input "
            f"{list(end.shape)}: it needs as many positions."
        ) from error

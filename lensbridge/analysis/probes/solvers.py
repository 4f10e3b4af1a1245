"""Regularized linear regression, logistic and ridge, solved to the optimum in float64.

Both problems are strictly convex, so there is one optimum. Features are standardized inside, and
the weights are penalized as weights of standardized features; intercepts are not penalized.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import LensbridgeError

Kind: TypeAlias = Literal["logistic", "ridge"]
"""logistic: classes. ridge: numbers."""

_STEPS = 2000
_TOLERANCE = 1e-5
"""The largest derivative of the mean loss that counts as an optimum."""


@dataclass(frozen=True)
class Linear:
    """A linear map of features.

    Shapes: weight `[output, feature]`, bias `[output]`
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Shapes: `[example, feature]` -> `[example, output]`"""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Standardized:
    """Features with mean 0 and variance 1; in a basis of their span where that is smaller.

    The optimum is a combination of the examples, so nothing is lost by working in their span.

    Args:
        mean: of each feature.
        scale: its standard deviation; 1 for a feature that is constant.
        basis: of the span of the examples, `[dimension, feature]`; None: the features themselves.
        values: the examples in this basis, `[example, dimension]`.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor | None
    values: Tensor

    @classmethod
    def of(cls, given: Tensor) -> "Standardized":
        """Standardize `[example, feature]`."""
        features = given.double()
        mean = features.mean(0)
        std = features.std(0, correction=0)
        constant = std <= _rounding(given.dtype) * features.abs().amax(0)
        scale = torch.where(constant, torch.ones_like(std), std)
        centred = torch.where(constant, torch.zeros_like(features), (features - mean) / scale)
        if len(centred) > centred.shape[1]:
            return cls(mean, scale, None, centred)
        left, sizes, right = torch.linalg.svd(centred, full_matrices=False)
        kept = sizes > 1e-10 * sizes.max().clamp(min=1e-300)
        return cls(mean, scale, right[kept], left[:, kept] * sizes[kept])

    def to_features(self, weight: Tensor, bias: Tensor) -> Linear:
        """A map of `values` as a map of the features. Shapes: weight `[output, dimension]`"""
        whole = (weight if self.basis is None else weight @ self.basis) / self.scale
        return Linear(whole, bias - whole @ self.mean)


def _rounding(dtype: torch.dtype) -> float:
    """The relative deviation that rounding alone can give values that should be equal.

    Standardization would make features of it. In float32 a batch adds up in another order than
    another; in half precision equal values are rounded equally or to neighbours.
    """
    eps = torch.finfo(dtype).eps
    return min(10 * eps, max(eps / 2, 1e-5))


def fit_ridge(features: Tensor, targets: Tensor, penalty: float) -> Linear:
    """Least squares with `penalty * |weight|^2`.

    Shapes: `[example, feature]`, `[example]` -> one output
    """
    given = Standardized.of(features)
    centre = targets.mean()
    gram = given.values.T @ given.values
    gram.diagonal().add_(penalty)
    weight = torch.linalg.solve(gram, given.values.T @ (targets - centre))
    return given.to_features(weight[None], centre[None])


def fit_logistic(features: Tensor, classes: Tensor, count: int, penalty: float) -> Linear:
    """The log loss, summed over examples, with `penalty / 2 * |weight|^2`.

    Two classes have one output, the log odds of the second; more have one for each class.

    Args:
        features: the examples.
        classes: the number of each example's class.
        count: how many classes there are.
        penalty: how strongly weights are penalized.

    Shapes: `[example, feature]`, `[example]` -> one output, or `count`

    Raises:
        LensbridgeError: the optimum was not reached.
    """
    given = Standardized.of(features)
    outputs = 1 if count == 2 else count
    size, examples = given.values.shape[1], len(classes)
    unknown = given.values.new_zeros(outputs, size + 1)
    loss = _log_loss(classes, outputs)

    def objective(some: Tensor) -> Tensor:
        weight, bias = some[:, :-1], some[:, -1]
        fitted = loss(given.values @ weight.T + bias)
        return (fitted + penalty / 2 * (weight**2).sum()) / examples

    found = _minimum(objective, unknown)
    bias = found[:, -1] if outputs == 1 else found[:, -1] - found[:, -1].mean()
    return given.to_features(found[:, :-1], bias)


def _log_loss(classes: Tensor, outputs: int) -> Callable[[Tensor], Tensor]:
    """The loss of outputs `[example, output]`, summed over examples."""
    if outputs > 1:
        return lambda given: torch.nn.functional.cross_entropy(given, classes, reduction="sum")
    signs = 1.0 - 2.0 * classes.double()
    return lambda given: torch.nn.functional.softplus(signs * given[:, 0]).sum()


def _minimum(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a convex function is least.

    Raises:
        LensbridgeError: the derivative is not zero there.
    """
    unknown = start.detach().clone().requires_grad_()
    search = torch.optim.LBFGS(
        [unknown],
        max_iter=_STEPS,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def step() -> Tensor:
        search.zero_grad()
        value = objective(unknown)
        value.backward()
        return value

    with torch.enable_grad():
        search.step(step)
        step()
    assert unknown.grad is not None
    left = float(unknown.grad.abs().max())
    if not left < _TOLERANCE:
        raise LensbridgeError(
            f"The logistic regression did not converge: its derivative is still {left:.1e}. "
            "Pass a larger penalty."
        )
    return unknown.detach()

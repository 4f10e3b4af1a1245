"""Regularized linear regression, logistic and ridge, solved to the optimum in float64.

Both problems are strictly convex, so there is one optimum. Features are standardized inside unless
a caller says otherwise, and the weights are penalized as weights of standardized features;
intercepts are not penalized.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import LensbridgeError

Kind: TypeAlias = Literal["logistic", "ridge"]
"""logistic: classes. ridge: numbers."""

_ROUNDS, _STEPS = 60, 30
_TOLERANCE = 1e-6
"""The largest derivative that counts as an optimum, where the second derivative is about 1."""


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
    def of(cls, given: Tensor, scaled: bool = True) -> "Standardized":
        """Standardize `[example, feature]`; not `scaled`: only the mean is taken out."""
        features = given.double()
        mean = features.mean(0)
        std = features.std(0, correction=0)
        constant = std <= _rounding(given.dtype) * features.abs().amax(0)
        scale = torch.where(constant, torch.ones_like(std), std) if scaled else torch.ones_like(std)
        centred = torch.where(constant, torch.zeros_like(features), (features - mean) / scale)
        if len(centred) > centred.shape[1]:
            return cls(mean, scale, None, centred)
        basis, values = torch.linalg.qr(centred.T)
        return cls(mean, scale, basis.T, values.T)

    def gram(self, factors: Tensor | float, penalty: float) -> Tensor:
        """The products of all dimensions, each example times its factor, with a penalty."""
        found = (self.values * factors).T @ self.values
        found.diagonal().add_(penalty)
        return found

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
    weight = torch.linalg.solve(given.gram(1.0, penalty), given.values.T @ (targets - centre))
    return given.to_features(weight[None], centre[None])


def fit_logistic(
    features: Tensor, classes: Tensor, count: int, penalty: float, scaled: bool = True
) -> Linear:
    """The log loss, summed over examples, with `penalty / 2 * |weight|^2`.

    Two classes have one output, the log odds of the second; more have one for each class.

    Args:
        features: the examples.
        classes: the number of each example's class.
        count: how many classes there are.
        penalty: how strongly weights are penalized.
        scaled: whether the weights of standardized features are meant, or those of the features.

    Shapes: `[example, feature]`, `[example]` -> one output, or `count`

    Raises:
        LensbridgeError: the optimum was not reached.
    """
    given = Standardized.of(features, scaled)
    outputs = 1 if count == 2 else count
    loss = _log_loss(classes, outputs)
    weight = given.values.new_zeros(outputs, given.values.shape[1])
    bias = given.values.new_zeros(outputs)
    left = float("inf")
    for _ in range(_ROUNDS):
        search = _Round.at(given, weight, bias, penalty)
        weight, bias, before, left = search.improved(loss)
        if before < _TOLERANCE:
            return given.to_features(weight, bias if outputs == 1 else bias - bias.mean())
    raise LensbridgeError(
        f"The logistic regression did not converge: its derivative is still {left:.1e}. Pass a "
        "larger penalty."
    )


@dataclass(frozen=True)
class _Round:
    """A search that starts at some weights, in the basis in which the second derivative there is
    about the identity, so that few steps are needed.

    Args:
        given: the examples.
        weight: where it starts.
        bias: the same.
        penalty: of the weights.
        root: the Cholesky factor of the second derivative.
        step: the inverse root of the second derivative of an intercept.
    """

    given: Standardized
    weight: Tensor
    bias: Tensor
    penalty: float
    root: Tensor
    step: float

    @classmethod
    def at(cls, given: Standardized, weight: Tensor, bias: Tensor, penalty: float) -> "_Round":
        """The round that starts at some weights."""
        odds = given.values @ weight.T + bias
        several = odds.shape[1] > 1
        likely = odds.softmax(-1) if several else odds.sigmoid()
        curvature = (likely * (1 - likely)).mean(-1, keepdim=True)
        root = torch.linalg.cholesky(given.gram(curvature, penalty))
        return cls(
            given, weight, bias, penalty, root, float(curvature.sum().clamp(min=1e-6)) ** -0.5
        )

    def parts(self, some: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and intercepts, from the unknowns."""
        change = torch.linalg.solve_triangular(self.root, some[:, :-1], upper=False, left=False)
        return self.weight + change, self.bias + self.step * some[:, -1]

    def improved(self, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, float, float]:
        """Better weights and intercepts, and the largest derivative before and after."""

        def objective(some: Tensor) -> Tensor:
            weight, bias = self.parts(some)
            fitted = loss(self.given.values @ weight.T + bias)
            return fitted + self.penalty / 2 * (weight**2).sum()

        found, before, after = _improved(
            objective, self.root.new_zeros(len(self.weight), len(self.root) + 1)
        )
        return *self.parts(found), before, after


def _log_loss(classes: Tensor, outputs: int) -> Callable[[Tensor], Tensor]:
    """The loss of outputs `[example, output]`, summed over examples."""
    if outputs > 1:
        return lambda given: torch.nn.functional.cross_entropy(given, classes, reduction="sum")
    signs = 1.0 - 2.0 * classes.double()
    return lambda given: torch.nn.functional.softplus(signs * given[:, 0]).sum()


def _improved(objective: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, float, float]:
    """Some steps from a start to where a convex function is least, and the derivative at both."""
    unknown = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [unknown],
        max_iter=_STEPS,
        tolerance_grad=_TOLERANCE / 10,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    seen: list[float] = []

    def step() -> Tensor:
        search.zero_grad()
        value = objective(unknown)
        value.backward()
        assert unknown.grad is not None
        seen.append(float(unknown.grad.abs().max()))
        return value

    with torch.enable_grad():
        search.step(step)
        step()
    return unknown.detach(), seen[0], seen[-1]

"""`fit_probe`: a linear probe for each layer, scored on examples that it was not fitted to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.probes.examples import Position, examples_of
from lensbridge.analysis.probes.folds import splits
from lensbridge.analysis.probes.labels import numbers_of, score
from lensbridge.analysis.probes.probe import Probe
from lensbridge.analysis.probes.result import ProbeResult
from lensbridge.analysis.probes.solvers import Kind, Linear, fit_logistic, fit_ridge
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.points.names import Name


def fit_probe(
    activations: Any,
    labels: Any,
    point: Name = "resid_post",
    layers: int | Sequence[int] | None = None,
    position: Position = -1,
    *,
    kind: Kind | None = None,
    penalty: float = 1.0,
    validation: int | float = 5,
    seed: int = 0,
) -> ProbeResult:
    """Fit a linear probe to the activations of each layer.

    Features are standardized inside. The score of a layer comes from examples that the probe was
    not fitted to; the probe that is kept is fitted to all examples.

    Args:
        activations: a cache; or one layer `[example, feature]`, several `[layer, example,
            feature]`, or a mapping from layer to `[example, ...]`.
        labels: one for each example. Text, booleans and integers are classes, floats are numbers.
            With `position="all"` one for each token, `[text, pos]`.
        point: what to read of a cache: a short name, or the name of a point of one layer.
        layers: which layers of a cache; None: all that it has.
        position: which token of each text is read of a cache: -1 or "last", the number of another
            one, "mean", or "all", where each token is an example.
        kind: "logistic" for classes, "ridge" for numbers; None: as the labels are.
        penalty: how strongly the weights of the standardized features are penalized. In
            scikit-learn's terms it is `1 / C` of a logistic and `alpha` of a ridge regression.
        validation: the number of folds of cross-validation; or, between 0 and 1, the share of the
            texts that is held out once.
        seed: of the splits.

    Units: scores are accuracies, or for numbers R2: 1 is perfect, 0 as good as their mean.

    Raises:
        InputError: other labels or activations than a probe needs, or too few.
        LensbridgeError: the fit did not converge.

    Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier
        probes".

    Example:
        >>> import lensbridge
        >>> from lensbridge.analysis import fit_probe
        >>> from lensbridge.demo.text import held_out_facts
        >>> model = lensbridge.load("demo")
        >>> facts = held_out_facts(60)
        >>> _, cache = model.run_with_cache(facts, "resid_post")
        >>> result = fit_probe(cache, [" in" in one.text[-3:] for one in facts])
        >>> result.layers, result.classes
        ([0, 1, 2, 3], (False, True))
    """
    if not penalty > 0:
        raise InputError(
            f"penalty is above 0, not {penalty}: without one the best weights may not be unique."
        )
    examples = examples_of(activations, point, layers, position)
    known = examples.labels(labels)
    kind = _kind(known) if kind is None else kind
    classes = _classes(known) if _is_logistic(kind) else ()
    numbers = numbers_of(known, classes)
    if not bool(torch.isfinite(numbers).all()):
        raise InputError("The labels have NaN or infinite values.")
    held_out = splits(examples.texts, known if classes else None, validation, seed)
    fit = _Fit(numbers, classes, held_out, penalty)
    with torch.inference_mode(False), torch.no_grad():
        probes = {layer: fit.probe(value) for layer, value in examples.values.items()}
    from_cache = isinstance(activations, ActivationCache)
    return ProbeResult(
        probes,
        max(Counter(known).values()) / len(known) if classes else 0.0,
        _point(point, activations) if from_cache else None,
        position if from_cache else None,
        penalty,
        seed,
    )


@dataclass(frozen=True)
class _Fit:
    """What is the same for all layers."""

    numbers: Tensor
    classes: tuple[Any, ...]
    held_out: Sequence[Tensor]
    penalty: float

    def probe(self, value: Tensor) -> Probe:
        """The probe of one layer."""
        features = _computable(value.detach()).flatten(1)
        numbers = self.numbers.to(features.device)
        scores = []
        for split in self.held_out:
            held = split.to(features.device)
            fitted = self._fitted(features[~held], numbers[~held])
            found = fitted(features[held].double())
            scores.append(score(self._read(found), numbers[held], bool(self.classes)))
        whole = self._fitted(features, numbers)
        weight = whole.weight.reshape(len(whole.weight), *value.shape[1:])
        return Probe(
            weight.cpu(), whole.bias.cpu(), self.classes, torch.tensor(scores).double(), value.dtype
        )

    def _fitted(self, features: Tensor, numbers: Tensor) -> Linear:
        if self.classes:
            return fit_logistic(features, numbers, len(self.classes), self.penalty)
        return fit_ridge(features, numbers, self.penalty)

    def _read(self, outputs: Tensor) -> Tensor:
        if not self.classes:
            return outputs[:, 0]
        return (outputs[:, 0] > 0).long() if len(self.classes) == 2 else outputs.argmax(-1)


def _computable(value: Tensor) -> Tensor:
    """Floating-point values on a device that has float64."""
    value = value.cpu() if value.device.type == "mps" else value
    return value if value.is_floating_point() else value.double()


def _is_logistic(kind: str) -> bool:
    if kind not in ("logistic", "ridge"):
        raise InputError(f"kind is 'logistic' or 'ridge', not {kind!r}.")
    return kind == "logistic"


def _kind(labels: Sequence[Any]) -> Kind:
    return "ridge" if any(isinstance(one, float) for one in labels) else "logistic"


def _classes(labels: Sequence[Any]) -> tuple[Any, ...]:
    """The different labels, sorted.

    Raises:
        InputError: fewer than two, or of several types.
    """
    found = set(labels)
    if len(found) < 2:
        raise InputError(
            f"A probe tells classes apart, and all {len(labels)} labels are {labels[0]!r}."
        )
    kinds = {type(one) for one in found}
    if len(kinds) > 1 or not issubclass(next(iter(kinds)), str | int | float):
        raise InputError(
            "Classes are all text, all booleans or all integers; these labels have the types "
            f"{', '.join(sorted(kind.__name__ for kind in kinds))}."
        )
    return tuple(sorted(found))


def _point(point: Name, cache: ActivationCache) -> str:
    return point if isinstance(point, str) and "." not in point else cache.canonical(point)

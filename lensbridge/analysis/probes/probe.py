"""Probe: one linear map of the activations of one layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.probes.solvers import Kind
from lensbridge.errors import InputError


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear map of the activations of one layer.

    Args:
        weight: in units of the activations as they are; standardization is part of it.
        bias: one for each output.
        classes: the labels, sorted; two of them have one output, the log odds of the second.
            Empty for numbers.
        scores: accuracy on the held-out examples of each split, or R2 for numbers.
        dtype: the type of the activations, which directions have too.

    Shapes: weight `[output, *feature]`, bias `[output]`, scores `[split]`; float64
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[Any, ...]
    scores: Tensor
    dtype: torch.dtype = torch.float32

    @property
    def kind(self) -> Kind:
        """Whether the labels are classes or numbers."""
        return "logistic" if self.classes else "ridge"

    @property
    def score(self) -> float:
        """The mean of the scores of all splits."""
        return float(self.scores.mean())

    def __repr__(self) -> str:
        what = f"{len(self.classes)} classes" if self.classes else "numbers"
        return f"Probe({what}, features {list(self.weight.shape[1:])}, score {self.score:.3f})"

    def outputs(self, activations: Any) -> Tensor:
        """What the map gives: log odds of the second of two classes, logits of several, numbers.

        Shapes: `[..., *feature]` -> `[..., output]`

        Raises:
            InputError: other features than the probe has.
        """
        given = torch.as_tensor(activations).detach().to(self.weight)
        wanted = self.weight.shape[1:]
        lead = given.shape[: given.ndim - len(wanted)]
        if given.shape[len(lead) :] != wanted:
            raise InputError(
                f"The probe reads features of shape {list(wanted)}; the activations have shape "
                f"{list(given.shape)}, which does not end with that."
            )
        flat = given.reshape(*lead, wanted.numel())
        return flat @ self.weight.flatten(1).T + self.bias

    def probabilities(self, activations: Any) -> Tensor:
        """The probability of each class.

        Shapes: `[..., *feature]` -> `[..., class]`

        Raises:
            InputError: the labels are numbers.
        """
        if not self.classes:
            raise InputError("The labels of this probe are numbers: use predict.")
        found = self.outputs(activations)
        if len(self.classes) == 2:
            found = torch.cat([torch.zeros_like(found), found], dim=-1)
        return found.softmax(-1)

    def numbers(self, activations: Any) -> Tensor:
        """The number of the likeliest class, or the value that is read. Shapes: `[...]`"""
        if not self.classes:
            return self.outputs(activations)[..., 0]
        return self.probabilities(activations).argmax(-1)

    def predict(self, activations: Any) -> Any:
        """The likeliest label of each example, or the value that is read.

        Returns:
            A tensor; for labels that are text, a list.

        Shapes: `[example, *feature]` -> `[example]`
        """
        found = self.numbers(activations)
        if not self.classes:
            return found
        if isinstance(self.classes[0], str):
            return _texts(found.tolist(), self.classes)
        return torch.tensor(self.classes, device=found.device)[found]

    def direction(self, label: Any = None, unit: bool = True) -> Tensor:
        """The direction in which the label becomes likelier, or the value larger.

        Args:
            label: a class; None where there are two is the second. For numbers it is left out.
            unit: with length 1; otherwise the weights themselves, as log odds for each unit.

        Shapes: `[*feature]`, in the type of the activations

        Raises:
            InputError: no such class, or several and none named.
        """
        found = self._weight(label)
        length = found.norm()
        if unit and float(length) == 0:
            raise InputError("The weights are all zero, so they have no direction.")
        return (found / length if unit else found).to(self.dtype)

    def _weight(self, label: Any) -> Tensor:
        if not self.classes:
            if label is not None:
                raise InputError("The labels of this probe are numbers: leave label out.")
            return self.weight[0]
        if label is None and len(self.classes) > 2:
            raise InputError(f"Name a class with label=, one of {_listed(self.classes)}.")
        label = self.classes[1] if label is None else label
        if label not in self.classes:
            raise InputError(f"There is no class {label!r}; there are {_listed(self.classes)}.")
        place = self.classes.index(label)
        if len(self.classes) == 2:
            return self.weight[0] if place else -self.weight[0]
        return self.weight[place]


def _texts(found: Any, classes: Sequence[Any]) -> Any:
    """Numbers of classes as their names, nested as they are."""
    if isinstance(found, list):
        return [_texts(one, classes) for one in found]
    return classes[found]


def _listed(classes: Sequence[Any]) -> str:
    shown = [repr(one) for one in classes[:8]]
    return ", ".join(shown if len(classes) <= 8 else [*shown, f"{len(classes) - 8} more"])

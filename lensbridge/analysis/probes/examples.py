"""What a probe is fitted to: activations by layer, and which text each example is from."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.analysis.positions import positions_of, real_tokens
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.points.names import Name, layer_of

Layer: TypeAlias = int | str
"""The number of a layer, or any other name of a set of activations."""

Position: TypeAlias = int | Literal["last", "mean", "all"]
"""Of the tokens of each text: one of them (-1 or "last" is the last), their mean, or each of them
as an example of its own."""


@dataclass(frozen=True)
class Examples:
    """Activations by layer.

    Args:
        values: by layer; the axes after the first are the features.
        real: which tokens are examples, where each token is one; None: each text is one.

    Shapes: values `[example, *feature]`; real `[text, pos]`
    """

    values: dict[Layer, Tensor]
    real: Tensor | None = None

    @property
    def count(self) -> int:
        """How many examples there are."""
        return len(next(iter(self.values.values())))

    @property
    def texts(self) -> Tensor:
        """The number of each example's text. Shapes: `[example]`"""
        if self.real is None:
            return torch.arange(self.count)
        return torch.arange(len(self.real))[:, None].expand_as(self.real)[self.real]

    def labels(self, given: Any) -> list[Any]:
        """A label for each example, from those of texts or of tokens.

        Raises:
            InputError: there are not as many labels as examples.
        """
        array = given.detach().cpu() if isinstance(given, Tensor) else given
        if self.real is not None:
            return self._of_tokens(array)
        found = array.tolist() if hasattr(array, "tolist") else list(array)
        if len(found) != self.count or any(isinstance(one, list | tuple) for one in found):
            raise InputError(
                f"There are {self.count} examples and {len(found)} labels"
                f"{'' if len(found) != self.count else ', which are lists'}: pass one label for "
                "each example. Labels of each token go with position='all'."
            )
        return [_plain(one) for one in found]

    def _of_tokens(self, given: Any) -> list[Any]:
        assert self.real is not None
        rows = given.tolist() if hasattr(given, "tolist") else [list(row) for row in given]
        texts, width = self.real.shape
        if len(rows) != texts or any(len(row) != width for row in rows):
            raise InputError(
                f"position='all' makes an example of each token, so labels are [{texts}, {width}] "
                "(text, column of the batch), padding included, whose labels are not used."
            )
        pairs = zip(rows, self.real.tolist(), strict=True)
        return [
            _plain(one) for row, real in pairs for one, kept in zip(row, real, strict=True) if kept
        ]


def _plain(label: Any) -> Any:
    """A label as Python has it: a number of numpy or torch as a number."""
    return label.item() if hasattr(label, "item") else label


def examples_of(
    given: Any, point: Name, layers: int | Sequence[int] | None, position: Position
) -> Examples:
    """Examples from a cache, from activations, or from activations by layer.

    Raises:
        InputError: other sizes than examples need, or values that are not finite.
    """
    if isinstance(given, ActivationCache):
        found = _of_cache(given, point, layers, position)
    elif isinstance(given, Mapping):
        found = Examples({layer: torch.as_tensor(value) for layer, value in given.items()})
    else:
        found = _of_tensor(torch.as_tensor(given))
    _check(found)
    return found


def _of_tensor(given: Tensor) -> Examples:
    """Shapes: `[example, feature]`, or `[layer, example, feature]`"""
    if given.ndim not in (2, 3):
        raise InputError(
            f"Activations are [example, feature] or [layer, example, feature], not "
            f"{list(given.shape)}. For other shapes pass them by layer: {{5: activations}}."
        )
    return Examples(dict(enumerate(given[None] if given.ndim == 2 else given)))


def _check(examples: Examples) -> None:
    if not examples.values:
        raise InputError("There are no activations to fit a probe to.")
    for layer, value in examples.values.items():
        if value.ndim < 2 or len(value) != examples.count:
            raise InputError(
                f"The activations of layer {layer!r} have shape {list(value.shape)}; they are "
                f"[example, ...], with as many examples in each layer ({examples.count})."
            )
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"The activations of layer {layer!r} have NaN or infinite values.")


def _of_cache(
    cache: ActivationCache, point: Name, layers: int | Sequence[int] | None, position: Position
) -> Examples:
    names = _names(cache, point, layers)
    found: dict[Layer, Tensor] = {}
    real = None
    for layer, name in names.items():
        value = cache[name]
        letters = cache.axes(name).split()
        if letters[:2] != ["b", "p"]:
            raise InputError(
                f"{name} has the axes {' '.join(letters)}; a probe needs examples and positions "
                "first: b p .... Take what you need of it and pass it by layer: {5: values}."
            )
        real = real_tokens(cache, *value.shape[:2]).to(value.device)
        found[layer] = _at(value, real, position)
    return Examples(found, None if position != "all" or real is None else real.cpu())


def _at(value: Tensor, real: Tensor, position: Position) -> Tensor:
    """Shapes: `[text, pos, *feature]` -> `[example, *feature]`"""
    if position == "all":
        return value[real]
    if position == "mean":
        weight = real.to(value.dtype).reshape(*real.shape, *[1] * (value.ndim - 2))
        return (value * weight).sum(1) / weight.sum(1)
    if isinstance(position, bool) or not (isinstance(position, int) or position == "last"):
        raise InputError(
            f"position is the number of a token, 'last', 'mean' or 'all', not {position!r}."
        )
    return positions_of(position, real.cpu()).of(value)[:, 0]


def _names(
    cache: ActivationCache, point: Name, layers: int | Sequence[int] | None
) -> dict[Layer, str]:
    """The names that are read, by layer."""
    if isinstance(point, str) and "." not in point:
        return _in_layers(cache, point, layers)
    if layers is not None:
        raise InputError(f"The name {point!r} has a layer: leave layers out.")
    name = cache.canonical(point)
    layer = layer_of(name)
    return {name if layer is None else layer: name}


def _in_layers(
    cache: ActivationCache, short: str, layers: int | Sequence[int] | None
) -> dict[Layer, str]:
    depth = next(iter(cache.vocabulary.depths.values()))
    if layers is None:
        names: Container[object] = cache  # short names too are in it
        held = [i for i in range(depth) if (short, i) in names]
        return {i: cache.canonical((short, i)) for i in held or [0]}
    asked = [layers] if isinstance(layers, int) else list(layers)
    return {i % depth: cache.canonical((short, i)) for i in asked}

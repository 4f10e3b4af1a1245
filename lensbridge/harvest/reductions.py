"""Reductions: what a harvest stores instead of the values themselves. All compute in float32."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lensbridge.errors import InputError, suggest


@runtime_checkable
class Reduction(Protocol):
    """What becomes of the values of a row. `per_row`: one entry for a row, not one for a token."""

    @property
    def per_row(self) -> bool:
        """Whether a row has one entry."""

    def describe(self) -> dict[str, Any]:
        """Its name and numbers, by which it is recognised when a harvest is resumed."""

    def __call__(self, values: Tensor) -> Mapping[str, Tensor]:
        """Named parts of what is stored; the name "" stands for the point itself.

        Shapes: values `[token, ...]` of one row, in float32; each part `[token, ...]`, or
            `[1, ...]` where `per_row`.
        """


@dataclass(frozen=True)
class Mean:
    """The mean over the kept tokens of each row."""

    per_row = True

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"reduce": "mean"}

    def __call__(self, values: Tensor) -> Mapping[str, Tensor]:
        """Shapes: `[token, ...]` -> `[1, ...]`"""
        return {"": values.mean(0, keepdim=True)}


@dataclass(frozen=True)
class Last:
    """The values at the last kept token of each row."""

    per_row = True

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"reduce": "last"}

    def __call__(self, values: Tensor) -> Mapping[str, Tensor]:
        """Shapes: `[token, ...]` -> `[1, ...]`"""
        return {"": values[-1:]}


@dataclass(frozen=True)
class Norm:
    """The Euclidean norm over the last axis."""

    per_row = False

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"reduce": "norm"}

    def __call__(self, values: Tensor) -> Mapping[str, Tensor]:
        """Shapes: `[token, ..., width]` -> `[token, ...]`"""
        return {"": values.norm(dim=-1)}


@dataclass(frozen=True)
class TopK:
    """The largest values of the last axis and their indices, as `NAME.values`, `NAME.indices`.

    Args:
        k: how many.
        by_magnitude: the largest absolute values, instead of the largest values.
    """

    k: int
    by_magnitude: bool = False
    per_row = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"TopK keeps 1 value or more, not {self.k}.")

    def describe(self) -> dict[str, Any]:
        """Its name and numbers."""
        return {"reduce": "top_k", "k": self.k, "by_magnitude": self.by_magnitude}

    def __call__(self, values: Tensor) -> Mapping[str, Tensor]:
        """Shapes: `[token, ..., width]` -> two of `[token, ..., k]`"""
        return top_k(values, self.k, self.by_magnitude)


@dataclass(frozen=True, eq=False)
class Projection:
    """The values times a matrix: coordinates along some directions.

    Args:
        matrix: the directions as columns. Shapes: `[width, direction]`
    """

    matrix: Tensor
    per_row = False

    def describe(self) -> dict[str, Any]:
        """Its name, size and a hash of the matrix."""
        return {
            "reduce": "projection",
            "size": list(self.matrix.shape),
            "sha256": hash_of(self.matrix),
        }

    def __call__(self, values: Tensor) -> Mapping[str, Tensor]:
        """Shapes: `[token, ..., width]` -> `[token, ..., direction]`"""
        if values.shape[-1] != self.matrix.shape[0]:
            raise InputError(
                f"The values are {values.shape[-1]} wide and the projection takes "
                f"{self.matrix.shape[0]}: its matrix is [width, direction]."
            )
        return {"": values @ self.matrix.to(values.device, values.dtype)}


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a sparse autoencoder, all or the k largest of each token.

    Args:
        sae: an object with `encode`.
        k: None: all features; else the k largest, as `NAME.values` and `NAME.indices`.
    """

    sae: Any
    k: int | None = None
    per_row = False

    def describe(self) -> dict[str, Any]:
        """Its name and a hash of the autoencoder's weights."""
        weights = self.sae.state_dict() if isinstance(self.sae, torch.nn.Module) else {}
        hashes = [f"{name} {hash_of(one)}" for name, one in sorted(weights.items())]
        return {
            "reduce": "features",
            "k": self.k,
            "class": type(self.sae).__name__,
            "sha256": sha256("\n".join(hashes).encode()).hexdigest(),
        }

    def __call__(self, values: Tensor) -> Mapping[str, Tensor]:
        """Shapes: `[token, width]` -> `[token, feature]`, or two of `[token, k]`"""
        found: Tensor = self.sae.encode(values)
        return {"": found} if self.k is None else top_k(found, self.k, False)


def top_k(values: Tensor, k: int, by_magnitude: bool) -> dict[str, Tensor]:
    """The largest values of the last axis and where they are. Shapes: two of `[..., k]`

    Raises:
        InputError: there are fewer.
    """
    if k > values.shape[-1]:
        raise InputError(f"The {k} largest of {values.shape[-1]} values: k is too large.")
    indices = (values.abs() if by_magnitude else values).topk(k, dim=-1).indices
    return {"values": values.gather(-1, indices), "indices": indices.int()}


def hash_of(tensor: Tensor) -> str:
    """A hash of the bytes of a tensor."""
    plain = tensor.detach().cpu().contiguous()
    return sha256(plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


_WORDS: dict[str, Reduction] = {"mean": Mean(), "last": Last(), "norm": Norm(), "norms": Norm()}


def as_reduction(given: object) -> Reduction:
    """A reduction from a word, or one that is given.

    Raises:
        InputError: it is neither.
    """
    if isinstance(given, str):
        if given in _WORDS:
            return _WORDS[given]
        raise InputError(
            f"reduce is 'mean', 'last', 'norm', or one of lensbridge.harvest.TopK, Projection and "
            f"Features, not {given!r}.{suggest(given, _WORDS)}"
        )
    if isinstance(given, Reduction):
        return given
    raise InputError(
        f"reduce is a word or has `per_row`, `describe` and can be called; {given!r:.60} has not."
    )

"""What the cases ask of a tool."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.comparison.families import Family
from benchmarks.comparison.outcomes import NotOffered

Change = Callable[[Tensor], Tensor]
Place = tuple[str, int]
"""A point (one of `ALL_POINTS`, which are in the order of the computation) and a layer."""

ALL_POINTS = ("resid_pre", "pattern", "z", "resid_mid", "resid_post")


@dataclass
class Opened(ABC):
    """A model as one tool runs it.

    Args:
        model: the HuggingFace model that the user has.
        family: of the model.
        notes: conditions that the use so far has set.
    """

    model: Any
    family: Family
    notes: list[str] = field(default_factory=list)

    @abstractmethod
    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """A run without anything attached."""

    @abstractmethod
    def read(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        """The logits, and the activations in the order of the places."""

    @abstractmethod
    def edit(self, ids: Tensor, place: Place, change: Change) -> Tensor:
        """The logits if an activation is changed."""

    def points(self) -> tuple[str, ...]:
        """Which of `ALL_POINTS` the tool reads on this model."""
        return ALL_POINTS

    def gradient(self, ids: Tensor, place: Place, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        """Of a scalar of the logits by an activation."""
        raise NotOffered("no call for gradients of activations")

    def generate(self, ids: Tensor, place: Place, change: Change, new: int, **how: Any) -> Tensor:
        """Greedy tokens with an edit at every step; the model has no token that ends a text."""
        raise NotOffered("no generation with edits")

    def generate_uncached(self, ids: Tensor, place: Place, change: Change, new: int) -> Tensor:
        """The same without a key/value cache, where that is another way to ask."""
        raise NotOffered("no other way")

    def keys(self, layer: int) -> Tensor:
        """W_K of each key/value head: `[n, d_model, d_head]`."""
        raise NotOffered("no weights by name")

    def query_key(self, layer: int) -> Tensor:
        """W_Q W_K^T of each query head: `[h, d_model, d_model]`."""
        raise NotOffered("no QK circuits")

    @abstractmethod
    def misspell(self, ids: Tensor) -> object:
        """Read an activation under a name that does not exist."""

    @abstractmethod
    def misspell_among(self, ids: Tensor) -> object:
        """Read two activations, one of them under a name that does not exist."""


@dataclass(frozen=True)
class Tool:
    """A tool.

    Args:
        name: for the tables.
        distribution: its name on PyPI.
        open: makes `Opened` of a family's model.
    """

    name: str
    distribution: str
    open: Callable[[Any, Family], Opened]

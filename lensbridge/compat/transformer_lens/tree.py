"""A model's parts as attributes: `model.blocks[0].attn.W_Q`, `model.ln_final.hook_scale`."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeAlias, overload

from torch import Tensor

from lensbridge.errors import WeightError, suggest

Branches: TypeAlias = dict[str, list[str]]
"""Path -> the names one step below it."""


class Weights(Protocol):
    """The weights of a model by name."""

    def write(self, values: dict[str, Any]) -> None:
        """Write some of them into the model."""


class Rooted(Protocol):
    """The model that parts belong to."""

    @property
    def branches(self) -> Branches:
        """The names below each path."""

    @property
    def weights(self) -> Weights:
        """Its weights."""

    def lookup(self, full: str) -> Any:
        """The weight, point or part at a path, or None."""

    def call_part(self, path: str, *args: Any, **kwargs: Any) -> Tensor:
        """Run the native module at a path."""


class Part:
    """One part of a model: its points, its weights and the parts inside it.

    Setting a weight (`part.W_Q = value`) writes into the model. Calling a part runs its native
    module.
    """

    def __init__(self, model: Rooted, path: str) -> None:
        self.__dict__.update(_model=model, _path=path)

    def __getattr__(self, name: str) -> Any:
        full = f"{self._path}.{name}"
        found = self._model.lookup(full)
        if found is None:
            raise WeightError(f"There is no {full}.{suggest(name, dir(self))}")
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        self._model.weights.write({f"{self._path}.{name}": value})

    def __dir__(self) -> list[str]:
        return sorted(self._model.branches[self._path])

    def __repr__(self) -> str:
        return f"{self._path}: {', '.join(dir(self))}"

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the native module."""
        return self._model.call_part(self._path, *args, **kwargs)


class Parts:
    """Layers by number: `model.blocks[-1]`, `len(model.blocks)`."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    @overload
    def __getitem__(self, index: int) -> Part: ...

    @overload
    def __getitem__(self, index: slice) -> "Parts": ...

    def __getitem__(self, index: int | slice) -> "Part | Parts":
        return Parts(self._parts[index]) if isinstance(index, slice) else self._parts[index]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    def __repr__(self) -> str:
        return f"{len(self)} layers"


def branches_of(names: Iterable[str]) -> Branches:
    """The names below each path of some names.

    Example:
        >>> branches_of(["blocks.0.attn.W_Q", "hook_embed"])
        {'blocks': ['0'], 'blocks.0': ['attn'], 'blocks.0.attn': ['W_Q'], '': ['hook_embed']}
    """
    found: dict[str, dict[str, None]] = {}
    for name in names:
        path = ""
        for step in name.split("."):
            if path or "." not in name:
                found.setdefault(path, {})[step] = None
            path = f"{path}.{step}".lstrip(".")
    return {path: list(below) for path, below in found.items()}


def part_at(model: Rooted, full: str) -> "Part | Parts | None":
    """The part at a path, or the list of layers there."""
    below = model.branches.get(full)
    if below is None:
        return None
    if all(step.isdigit() for step in below):
        return Parts([Part(model, f"{full}.{i}") for i in sorted(map(int, below))])
    return Part(model, full)

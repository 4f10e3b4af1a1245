"""Steering vectors of several points: one for each layer, used as a tuple of interventions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import torch
from torch import Tensor

from lensbridge.errors import InputError, UnknownPointError, suggest
from lensbridge.interventions.kinds import Steer
from lensbridge.interventions.steering_files import read_vectors, write_vectors
from lensbridge.points.names import Name, expand_short, layer_of, template

if TYPE_CHECKING:
    from typing_extensions import Self


class SteeringVectors(tuple[Steer, ...]):
    """A `Steer` for each of several points, most often for each layer.

    It is a tuple, which goes wherever a list of interventions goes, and then steers at all of its
    points. One of them is `vectors["resid_post", 5]`; `vectors[5]` is the sixth in order, and
    `vectors[4:8]` are four.

    Args:
        steers: the interventions, in data-flow order.
        model_type: the type of model that they are of, such as "llama", which files name.

    Example:
        >>> import lensbridge
        >>> from lensbridge.interventions import steering_vector
        >>> model = lensbridge.load("demo")
        >>> pair = ["The Eiffel Tower"], ["The Galata Tower"]
        >>> vectors = steering_vector(model, *pair, "resid_post")
        >>> vectors.vector.shape, vectors["resid_post", 2].site
        (torch.Size([4, 128]), 'blocks.2.hook_resid_post')
        >>> vectors[1:3].at(strength=2.0).layers
        [1, 2]
    """

    model_type: str

    def __new__(cls, steers: Iterable[Steer], model_type: str = "") -> Self:
        given = tuple(steers)
        wrong = [one for one in given if not isinstance(one, Steer) or not _is_name(one.site)]
        if wrong or not given:
            raise InputError(
                "SteeringVectors has one Steer or more, each at one point that is named in full, "
                f"not {wrong[0] if wrong else 'none'!r}."
            )
        made = super().__new__(cls, given)
        made.model_type = model_type
        return made

    def __getnewargs__(self) -> tuple[tuple[Steer, ...], str]:
        return tuple(self), self.model_type

    def __repr__(self) -> str:
        rows = dict.fromkeys(template(name).rpartition("hook_")[2] for name in self.names)
        layers = [layer for layer in self.layers if layer is not None]
        span = f", layers {min(layers)} to {max(layers)}" if layers else ""
        return f"SteeringVectors({len(self)} of {', '.join(rows)}{span})"

    @property
    def names(self) -> list[str]:
        """The points, in full."""
        return [str(one.site) for one in self]

    @property
    def layers(self) -> list[int | None]:
        """The layer of each; None for a point outside the layers."""
        return [layer_of(name) for name in self.names]

    @property
    def vector(self) -> Tensor:
        """All vectors, stacked. Shapes: `[layer, d_model]`, or with the axes of the point

        Raises:
            InputError: they have different shapes.
        """
        shapes = {tuple(one.vector.shape) for one in self}
        if len(shapes) > 1:
            raise InputError(
                f"The vectors have shapes {sorted(shapes)}, so they cannot be stacked."
            )
        return torch.stack([one.vector.to(self[0].vector.device) for one in self])

    @overload
    def __getitem__(self, index: SupportsIndex) -> Steer: ...
    @overload
    def __getitem__(self, index: slice) -> SteeringVectors: ...
    @overload
    def __getitem__(self, index: Name) -> Steer: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return SteeringVectors(super().__getitem__(index), self.model_type)
        if not isinstance(index, str | tuple):
            return super().__getitem__(index)
        name = index if isinstance(index, str) else expand_short(*index)
        if name not in self.names:
            raise UnknownPointError(
                f"There is no vector of {name}.{suggest(name, self.names)} There are those of "
                f"{', '.join(self.names[:4])}{'...' if len(self) > 4 else ''}."
            )
        return super().__getitem__(self.names.index(name))

    def at(self, **changes: Any) -> SteeringVectors:
        """All of them with other members: `vectors.at(strength=2.0, positions="last")`."""
        return SteeringVectors(tuple(one.at(**changes) for one in self), self.model_type)

    def save(self, path: str | Path) -> None:
        """Write the vectors, times their strength, into a file of another tool.

        The suffix says which: `.gguf` is a control vector of repeng and llama.cpp, with one
        direction for each layer of the residual stream. (llama.cpp takes layers from 1 on: save
        `vectors[1:]` for it.) `.pt` is `{"layer_activations": ..., "layer_type": ...}`, the
        arguments of `SteeringVector` of steering-vectors: `SteeringVector(**torch.load(path))`.
        Where, how and when they act is not in these files; `to_json` keeps all of it.

        Raises:
            InputError: another suffix, points that the format does not know, a `Steer` that acts
                on a part only, or gguf is not installed.
        """
        write_vectors(self, self.model_type, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> SteeringVectors:
        """Read a control vector (`.gguf`) or vectors of steering-vectors (`.pt`).

        A `.pt` file holds what `save` writes, or a `SteeringVector` that `torch.save` wrote. No
        code in it is run.

        Raises:
            InputError: the file is none of these, or gguf is not installed.
        """
        vectors, model_type = read_vectors(Path(path))
        return cls(tuple(Steer(name, vector) for name, vector in vectors.items()), model_type)


def _is_name(site: Any) -> bool:
    return isinstance(site, str) and "hook_" in site and not any(sign in site for sign in "*?[")

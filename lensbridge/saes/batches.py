"""Data: batches of activations on which SAEs are trained and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.saes.trained import Metadata

_SAMPLE = 65_536
"""Entries by which the data are scaled, and the bias of the decoder begins."""


@runtime_checkable
class Shuffles(Protocol):
    """Activations that give batches in random order, as those of a harvest do."""

    def shuffled(
        self, batch_size: int, seed: int = 0, window: int | None = None, points: Any = None
    ) -> Iterable[dict[str, Tensor]]:
        """Batches, each entry once."""


@dataclass(frozen=True)
class Data:
    """Batches of activations, as many as wanted.

    Args:
        width: of an entry.
        metadata: what the SAE says of its place.
        sample: some entries.
        epochs: gives the batches of one pass over the data, over and over.
        device: where batches go.
    """

    width: int
    metadata: Metadata
    sample: Tensor
    epochs: Callable[[], Iterator[Tensor]]
    device: torch.device

    @classmethod
    def of(
        cls,
        activations: Any,
        point: Any,
        batch_size: int,
        window: int | None,
        seed: int,
        device: torch.device | str | None,
    ) -> Data:
        """The batches of activations of either kind.

        Raises:
            InputError: there are several points, or too few entries.
        """
        if isinstance(activations, Tensor):
            return cls._of_tensor(activations, batch_size, seed, device)
        if not isinstance(activations, Shuffles):
            raise InputError(
                f"An SAE is trained on lensbridge.Activations or a tensor [entry, width], not on "
                f"{type(activations).__name__}."
            )
        acts: Any = activations
        if point is None and len(acts.points) != 1:
            raise InputError(f"Say which point: {', '.join(acts.points)}.")
        column = acts[acts.points[0] if point is None else point]
        if len(column.shape) < 2:
            raise InputError(f"{column.name} has one number for each entry: there is no width.")
        loop = acts.shuffled(batch_size, seed, window, [column.name])
        first = next(
            iter(acts.shuffled(min(_SAMPLE, len(column)), seed + 1, window, [column.name]))
        )

        def epochs() -> Iterator[Tensor]:
            return (batch[column.name].flatten(1) for batch in loop)

        name = acts.specs[0]["model"]["name"]
        sample = first[column.name].flatten(1)
        where = torch.device(device or sample.device)
        return cls(sample.shape[1], Metadata(column.name, name), sample, epochs, where)

    @classmethod
    def _of_tensor(
        cls, values: Tensor, batch_size: int, seed: int, device: torch.device | str | None
    ) -> Data:
        if values.ndim != 2 or not len(values):
            raise InputError(f"Activations are [entry, width], not {list(values.shape)}.")
        keys = torch.Generator().manual_seed(seed)
        flat = values.detach()

        def epochs() -> Iterator[Tensor]:
            order = torch.randperm(len(flat), generator=keys).to(flat.device)
            return (flat[part] for part in order.split(batch_size))

        where = torch.device(device or flat.device)
        return cls(flat.shape[1], Metadata(""), flat[:_SAMPLE], epochs, where)

    def batches(self) -> Iterator[Tensor]:
        """Batches without end. Shapes: `[entry, width]`, float32"""
        while True:
            for batch in self.epochs():
                yield batch.to(self.device, torch.float32)

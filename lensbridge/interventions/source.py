"""Source: activations of another run that an intervention takes its values from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.interventions.columns import NO_COLUMN, Window, columns_of
from lensbridge.interventions.region import Place, Region
from lensbridge.points.point_names import NamesFilter

Source: TypeAlias = ActivationCache | Mapping[Any, Tensor] | Tensor
"""A cache; tensors by name of the point; or, for one point, its tensor. Whole activations, with
their batch and position axes, as a cache holds them."""


@dataclass(frozen=True, eq=False)
class StoredSource(Mapping[Any, Tensor]):
    """Activations by name that know the padding of their run, as a cache does.

    Args:
        tensors: by name.
        attention_mask: `[batch, pos]` of the run, or None where nothing was padding.
    """

    tensors: Mapping[Any, Tensor]
    attention_mask: Tensor | None = None

    @classmethod
    def of(cls, cache: ActivationCache, site: NamesFilter) -> "StoredSource":
        """What a cache holds at a site."""
        names = cache.vocabulary.select(site)
        return cls({name: cache[name] for name in names}, cache.attention_mask)

    def __getitem__(self, name: Any) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class Paired(NamedTuple):
    """Values of a source beside the columns of a region.

    Shapes: value `[rows or 1, n, (head), last]`; inside `[rows or 1, n]`, where there is one; real
        `[rows, n]`, where there is one and it is of a token.
    """

    value: Tensor
    inside: Tensor
    real: Tensor


@dataclass(frozen=True, eq=False)
class SourceValues:
    """The whole activation of a source at one point.

    Args:
        value: in the order `[batch, pos, (head), ...]`.
        window: its columns.
        tells_padding: whether it is known which of them are padding.
    """

    value: Tensor
    window: Window
    tells_padding: bool = False

    @classmethod
    def of(cls, source: Source, place: Place, masked: bool = True) -> "SourceValues":
        """The activation of a source that belongs to a place.

        Args:
            source: tensors by canonical name, or one.
            place: where it goes.
            masked: whether the source's mask is of the columns there; that of an encoder-decoder
                is the encoder's.

        Raises:
            InputError: it is not there, or of another shape than the point.
        """
        found = tensor_of(source, place.name)
        if found.ndim != len(place.axes.letters):
            raise InputError(
                f"{place.name} has the axes {' '.join(place.axes.letters)}; the source has shape "
                f"{tuple(found.shape)}. Give whole activations, as a cache holds them."
            )
        value = place.axes.ordered(found)
        rows, length = value.shape[:2]
        known = masked and isinstance(source, ActivationCache | StoredSource)
        mask = source.attention_mask if known else None  # type: ignore[union-attr]
        fits = mask is not None and tuple(mask.shape) == (rows, length)
        window = Window(rows, 0, length, length, mask if fits else None)
        return cls(value, window, known and (fits or mask is None))

    def seen(self, place: Place) -> Tensor:
        """All columns, and of them what the place sees."""
        return place.inner(self.value, self.window)

    def sample(self, place: Place) -> Tensor:
        """`seen` of one column, for its form."""
        return place.inner(self.value[:1, :1], self.window)

    def paired(self, region: Region, positions: Any) -> "Paired":
        """For each column of a region the value here that belongs to it, and where there is one.

        Args:
            region: of the run that is going on.
            positions: normalized positions here; None means those of the region.
        """
        place = region.place
        asked = place.positions if positions is None else positions
        alone = self.window.rows == 1
        window = replace(self.window, rows=region.window.rows) if alone else self.window
        device = region.columns.device
        if asked is None:
            columns = region.columns
            inside = (columns >= 0) & (columns < self.window.end)
        else:
            columns, inside = columns_of(asked, window, device)
        columns, inside = (_widened(one, region.columns.shape[1]) for one in (columns, inside))
        local = columns.clamp(0, self.window.end - 1).to(self.value.device)
        rows = torch.arange(self.window.rows, device=local.device)[:, None]
        if len(local) > 1 and alone:
            rows = rows.expand(len(local), -1)
        value = place.inner(self.value[rows, local], self.window)
        real = window.is_token(columns) if len(columns) > 1 else self.window.is_token(columns)
        return Paired(value.to(region.value), inside, inside & real)


def _widened(columns: Tensor, width: int) -> Tensor:
    """Generation adds columns to a region that no source has: nothing belongs to them."""
    lacking = width - columns.shape[1]
    if lacking <= 0:
        return columns[:, :width]
    fill = False if columns.dtype == torch.bool else NO_COLUMN
    return torch.cat([columns, columns.new_full((len(columns), lacking), fill)], dim=1)


def tensor_of(source: Source, name: str) -> Tensor:
    """The activation of a point in a source whose names are canonical.

    Raises:
        InputError: the source has none.
    """
    if isinstance(source, Tensor):
        return source
    if name not in source:
        raise InputError(f"The source has no {name}. Cache it, or give another source.")
    return source[name]

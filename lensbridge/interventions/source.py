"""Source: the activations of another run from which an intervention takes its values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.inputs.positions import ColumnOwner
from lensbridge.inputs.special import is_special
from lensbridge.interventions.columns import NO_COLUMN, Window, columns_of
from lensbridge.interventions.region import Place, Region
from lensbridge.points.point_names import NamesFilter

Source: TypeAlias = ActivationCache | Mapping[Any, Tensor] | Tensor
"""A cache, tensors by the name of their point, or the tensor of a single point. Tensors are whole
activations, with batch and position axes, as in a cache."""


@dataclass(frozen=True, eq=False)
class StoredSource(Mapping[Any, Tensor]):
    """Activations by name, with the padding mask of their run.

    Args:
        tensors: by name.
        attention_mask: `[batch, pos]` of the run, or None if nothing was padding.
        tokens: `[batch, pos]` ids of the run, or None if they are not known.
        decoder_attention_mask: the mask of the decoder's text, if the model has one.
    """

    tensors: Mapping[Any, Tensor]
    attention_mask: Tensor | None = None
    tokens: Tensor | None = None
    decoder_attention_mask: Tensor | None = None

    @classmethod
    def of(cls, cache: ActivationCache, site: NamesFilter) -> "StoredSource":
        """The activations of a cache at a site."""
        names = cache.vocabulary.select(site)
        tensors = {name: cache[name] for name in names}
        return cls(
            tensors,
            cache.attention_mask,
            decoder_attention_mask=cache.decoder_attention_mask,
        )

    def __getitem__(self, name: Any) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class Paired(NamedTuple):
    """Values of a source for the columns of a region.

    Shapes: value `[rows or 1, n, (head), last]`; inside `[rows or 1, n]`, whether the source has a
        value there; real `[rows, n]`, whether it has one and that is of a token.
    """

    value: Tensor
    inside: Tensor
    real: Tensor


@dataclass(frozen=True, eq=False)
class SourceValues:
    """The whole activation of a source at one point.

    Args:
        value: with axes `[batch, pos, (head), ...]`.
        window: its columns.
        tells_padding: whether it is known which of them are padding.
    """

    value: Tensor
    window: Window
    tells_padding: bool = False

    @classmethod
    def of(
        cls,
        source: Source,
        place: Place,
        owner: ColumnOwner = "text",
        special: frozenset[int] = frozenset(),
    ) -> "SourceValues":
        """The activation of a source for a place.

        Args:
            source: tensors by canonical name, or one tensor.
            place: where it goes.
            owner: what the columns there belong to.
            special: ids of tokens that means leave out.

        Raises:
            InputError: the source lacks it, or it has another number of axes than the point.
        """
        found = tensor_of(source, place.name)
        if found.ndim != len(place.axes.letters):
            raise InputError(
                f"{place.name} has the axes {' '.join(place.axes.letters)}; the source has shape "
                f"{tuple(found.shape)}. Give whole activations, as in a cache."
            )
        value = place.axes.ordered(found)
        rows, length = value.shape[:2]
        known = owner != "tower" and isinstance(source, ActivationCache | StoredSource)
        mask = _mask_of(source, owner) if known else None  # type: ignore[arg-type]
        fits = mask is not None and tuple(mask.shape) == (rows, length)
        named = known and special and owner != "decoder"
        tokens = source.tokens if named else None  # type: ignore[union-attr]
        left_out = None
        if tokens is not None and tuple(tokens.shape) == (rows, length):
            left_out = is_special(tokens, special)
        window = Window(rows, 0, length, length, mask if fits else None, special=left_out)
        return cls(value, window, known and (fits or mask is None))

    @property
    def rows(self) -> int:
        """How many examples it has."""
        return self.window.rows

    def chosen(self, rows: Tensor) -> "SourceValues":
        """The values of some examples alone."""
        value = self.value.index_select(0, rows.to(self.value.device))
        return replace(self, value=value, window=self.window.chosen(rows))

    def seen(self, place: Place) -> Tensor:
        """The part that the place edits, of all columns."""
        return place.inner(self.value, self.window)

    def sample(self, place: Place) -> Tensor:
        """`seen` of one column, for its shape."""
        return place.inner(self.value[:1, :1], self.window)

    def paired(self, region: Region, positions: Any) -> "Paired":
        """The value for each column of a region, and whether there is one.

        Args:
            region: of the current run.
            positions: normalized positions in the source; None means those of the region.
        """
        place = region.place
        asked = place.positions if positions is None else positions
        alone = self.window.rows == 1
        window = replace(self.window, rows=region.window.rows) if alone else self.window
        device = region.columns.device
        if asked is None:
            columns = region.columns
            inside = (columns >= self.window.start) & (columns < self.window.end)
        else:
            columns, inside = columns_of(asked, window, device, place.count)
        columns, inside = (_widened(one, region.columns.shape[1]) for one in (columns, inside))
        local = (columns - self.window.start).clamp(0, self.value.shape[1] - 1)
        local = local.to(self.value.device)
        rows = torch.arange(self.window.rows, device=local.device)[:, None]
        if len(local) > 1 and alone:
            rows = rows.expand(len(local), -1)
        value = place.inner(self.value[rows, local], self.window)
        real = window.is_token(columns) if len(columns) > 1 else self.window.is_token(columns)
        return Paired(value.to(region.value), inside, inside & real)


def _mask_of(source: ActivationCache | StoredSource, owner: ColumnOwner) -> Tensor | None:
    """The padding mask of the run of a source, of one of its texts."""
    return source.decoder_attention_mask if owner == "decoder" else source.attention_mask


def _widened(columns: Tensor, width: int) -> Tensor:
    """Columns as many as a region has: generation adds some, for which the source has none."""
    lacking = width - columns.shape[1]
    if lacking <= 0:
        return columns[:, :width]
    fill = False if columns.dtype == torch.bool else NO_COLUMN
    return torch.cat([columns, columns.new_full((len(columns), lacking), fill)], dim=1)


def tensor_of(source: Source, name: str) -> Tensor:
    """The activation of a point in a source whose names are canonical.

    Raises:
        InputError: the source lacks it.
    """
    if isinstance(source, Tensor):
        return source
    if name not in source:
        raise InputError(f"The source has no {name}. Cache it, or give another source.")
    return source[name]

"""Activations: the shards of one or several folders, mapped into memory and read as needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest.columns import Column, mean
from lensbridge.harvest.computing import DOCUMENTS, OFFSETS, POSITIONS, ROWS, TOKENS
from lensbridge.harvest.export import TorchRows, to_datasets, to_parquet
from lensbridge.harvest.kept_tokenizer import kept
from lensbridge.harvest.shuffling import Shuffled
from lensbridge.harvest.stored import Shards
from lensbridge.harvest.tops import Beside, Tops, tops
from lensbridge.points.names import Name, expand_short, layer_of

if TYPE_CHECKING:
    from torch.utils.data import Dataset


class Activations(Shards):
    """The activations that a harvest wrote, as tensors over all shards.

    Files are mapped into memory, so opening costs nothing and only what is indexed is read. A
    folder that is not complete opens with the shards that it has. Several folders of one harvest,
    or of harvests of the same points, are joined.

    Args:
        folders: a folder, or several.
        check: compare the checksums of all files first.

    Raises:
        InputError: a folder has no harvest, a file is missing or damaged, or folders differ in
            their points.

    Example: `acts["resid_post", 6][1_000:1_064]`, `acts.tokens[:10]`, `acts.document(17)`.
    """

    @classmethod
    def merge(cls, parts: Iterable[Activations]) -> Activations:
        """Several as one, in order."""
        return cls([folder.path for one in parts for folder in one.folders])

    def __repr__(self) -> str:
        where = ", ".join(str(one.path) for one in self.folders)
        names = ", ".join(self.points)
        count = f"{len(self):,} entries in {len(self.stored)} shards"
        return f"Activations({count} of {where}: {names})"

    def __getitem__(self, name: Name) -> Column:
        """One point, over all shards: `acts["resid_post", 6]`, `acts["blocks.6.hook_resid_post"]`.

        Raises:
            InputError: it was not harvested.
        """
        return self.column(self.canonical(name))

    @property
    def tokens(self) -> Column:
        """The id of each entry's token (of the last one, where a row was reduced)."""
        return self.column(TOKENS)

    @property
    def positions(self) -> Column:
        """The position of each entry in its row."""
        return self.column(POSITIONS)

    @property
    def rows(self) -> Column:
        """The number of each entry's row."""
        return self.column(ROWS)

    @property
    def documents(self) -> Column:
        """The number of each entry's document; -1 for BOS in front of joined ones."""
        return self.column(DOCUMENTS)

    def document(self, number: int) -> dict[str, Tensor]:
        """All that is kept of one document, by name.

        Each folder counts its documents from 0: of several, open the one that is meant.

        Shapes: `[entry, ...]`

        Raises:
            InputError: nothing of it is here.
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in self.columns}
        for index, one in enumerate(self.stored):
            first, last = one.shard.documents
            if first <= number <= last:
                mask = self.read(index, DOCUMENTS, slice(None)) == number
                for name, found in parts.items():
                    found.append(self.read(index, name, slice(None))[mask])
        joined = {name: torch.cat(found) for name, found in parts.items() if found}
        if not joined or not len(joined[TOKENS]):
            raise InputError(f"Nothing of document {number} is here.{self._documents_told()}")
        return joined

    def _documents_told(self) -> str:
        ranges = [one.shard.documents for one in self.stored if one.shard.documents[1] >= 0]
        if not ranges:
            return ""
        first, last = min(a for a, _ in ranges), max(b for _, b in ranges)
        return f" The shards have documents {first} to {last}."

    def row(self, shard: int, row: int) -> dict[str, Tensor]:
        """What is kept of one row of a shard, by name.

        Args:
            shard: which of the shards that are here, from 0.
            row: which row of this shard, from 0. (`rows` has numbers in the whole harvest.)

        Shapes: `[entry, ...]`

        Raises:
            InputError: there is no such shard or row.
        """
        offsets = self.offsets(shard)
        if not 0 <= row < len(offsets) - 1:
            raise InputError(f"There is no row {row}: shard {shard} has {len(offsets) - 1}.")
        part = slice(int(offsets[row]), int(offsets[row + 1]))
        return {name: self.read(shard, name, part) for name in self.columns}

    def offsets(self, shard: int) -> Tensor:
        """Where the entries of each row of a shard begin. Shapes: `[row + 1]`

        Raises:
            InputError: there is no such shard.
        """
        if not 0 <= shard < len(self.stored):
            raise InputError(f"There is no shard {shard}: {len(self.stored)} are here.")
        found: Tensor = self.file(shard).get_tensor(OFFSETS)
        return found

    def shuffled(
        self,
        batch_size: int,
        seed: int = 0,
        window: int | None = None,
        points: Sequence[Name] | None = None,
        drop_last: bool = False,
    ) -> Shuffled:
        """Batches of entries in random order, each entry once an epoch.

        Args:
            batch_size: entries of a batch.
            seed: of the order; each epoch has another.
            window: entries that are in memory at once: shards come in random order and are mixed
                within windows of so many, which reads files from front to back. None: any entry
                can stand anywhere, which reads files at random places.
            points: which points; None: all.
            drop_last: leave out a last batch that is not full.

        Raises:
            InputError: there is nothing to read, or a number is too small.

        Example: `for batch in acts.shuffled(4096): step(batch["blocks.6.hook_resid_post"])`
        """
        names = self.points if points is None else [self.canonical(one) for one in points]
        return Shuffled(
            [self.column(one) for one in (*names, TOKENS, POSITIONS, ROWS, DOCUMENTS)],
            batch_size,
            seed,
            window,
            drop_last,
        )

    def torch(self) -> Dataset[dict[str, Tensor]]:
        """A dataset of PyTorch with one entry for each index, for a DataLoader."""
        return TorchRows(self)

    def to_datasets(self, context: int | None = None) -> Any:
        """A `datasets.Dataset` as SAELens reads it: a row of tokens and of each point.

        Args:
            context: entries of a row. None: the rows that were run. Where these have different
                lengths, because some tokens of joined documents (`packing="concat"`) were not kept,
                the entries are cut into rows as long as the longest.

        Raises:
            InputError: rows of single documents have different lengths, or `datasets` is not
                installed.
        """
        return to_datasets(self, context)

    def to_parquet(self, path: str | PathLike[str]) -> Path:
        """Write everything to one Parquet file, an entry for each row.

        bfloat16, which Parquet does not have, becomes float32.

        Raises:
            InputError: pyarrow is not installed.
        """
        return to_parquet(self, Path(path))

    @cached_property
    def tokenizer(self) -> Any | None:
        """The tokenizer of the model, from the folder; None: the model had none."""
        return kept(self.folders[0].path)

    def to_string(self, ids: Any) -> str:
        """Some ids as text; numbers where there is no tokenizer."""
        listed = torch.as_tensor(ids).flatten().tolist()
        if self.tokenizer is None:
            return " ".join(map(str, listed))
        return str(self.tokenizer.decode(listed))

    def top(self, point: Name, feature: Any, k: int = 10, context: int = 12) -> Tops:
        """The entries at which a value of a point is largest, with the text around them.

        Args:
            point: which.
            feature: an index of the last axis (a neuron), a direction, `(sae, number)` for a
                feature of a sparse autoencoder, or a function of `[entry, ...]`.
            k: how many entries.
            context: tokens of the same row to show on each side.

        Raises:
            InputError: the point was not harvested, or the feature does not fit it.
        """
        text = cache(lambda one: self.to_string([one]))
        beside = Beside(self.tokens, self.rows, self.documents, text)
        return tops(self[point], feature, k, context, beside)

    def mean(self, point: Name, where: Tensor | None = None) -> Tensor:
        """The mean of a point over all entries, or over those of a mask, in float64.

        Shapes: where `[entry]`, bool; result `[...]`

        Raises:
            InputError: the mask has another length, or is true nowhere.
        """
        return mean(self[point], where)

    def mean_difference(self, point: Name, where: Tensor) -> Tensor:
        """The mean where a mask is true less the mean where it is not, in float64.

        Shapes: where `[entry]`, bool; result `[...]`

        Raises:
            InputError: the mask has another length, or is the same everywhere.
        """
        return self.mean(point, where) - self.mean(point, ~where)

    def by_layer(self, point: str) -> dict[int, Tensor]:
        """A short name in all layers that were harvested, for `fit_probe`.

        Shapes: layer -> `[entry, ...]`

        Raises:
            InputError: it was harvested in no layer.
        """
        named = {
            int(layer_of(name) or 0): self[name][:]
            for name in self.points
            if layer_of(name) is not None and expand_short(point, layer_of(name)) == name
        }
        if not named:
            raise InputError(f"{point!r} was harvested in no layer: {', '.join(self.points)}.")
        return named

    def shards(self) -> Iterator[Mapping[str, Tensor]]:
        """The tensors of one shard after another, mapped."""
        for index in range(len(self.stored)):
            yield {name: self.read(index, name, slice(None)) for name in self.columns}

    def where(self, entry: int) -> tuple[int, int]:
        """The shard of an entry, counted among those that are here, and its place in there."""
        shard = bisect_right(self.starts, entry) - 1
        return shard, entry - self.starts[shard]

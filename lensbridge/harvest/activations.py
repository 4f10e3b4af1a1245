"""Activations: the shards of one or several folders, mapped into memory and read as needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from lensbridge.errors import InputError, suggest
from lensbridge.harvest.columns import Column, mean
from lensbridge.harvest.computing import BESIDE, DOCUMENTS, OFFSETS, POSITIONS, ROWS, TOKENS
from lensbridge.harvest.differences import differences
from lensbridge.harvest.export import TorchRows, to_datasets, to_parquet
from lensbridge.harvest.folder import Folder
from lensbridge.harvest.kept_tokenizer import kept
from lensbridge.harvest.manifest import Shard
from lensbridge.harvest.shuffling import Shuffled
from lensbridge.harvest.tops import Beside, Tops, tops
from lensbridge.points.names import LAYER, Name, expand_short, is_short, layer_of

if TYPE_CHECKING:
    from torch.utils.data import Dataset


@dataclass(frozen=True)
class Stored:
    """One shard of one folder."""

    folder: Folder
    shard: Shard

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder.path / self.shard.file


class Activations:
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

    def __init__(
        self,
        folders: str | PathLike[str] | Sequence[str | PathLike[str]],
        check: bool = False,
    ) -> None:
        several = [folders] if isinstance(folders, (str, PathLike)) else list(folders)
        if not several:
            raise InputError("Name at least one folder.")
        self.folders = [Folder(Path(one)) for one in several]
        self.specs = [one.identity() for one in self.folders]
        self._require_alike()
        self.stored = [
            Stored(folder, shard)
            for folder in self.folders
            for shard in _whole(folder, check).values()
        ]
        self._open: dict[int, Any] = {}

    @classmethod
    def merge(cls, parts: Iterable[Activations]) -> Activations:
        """Several as one, in order."""
        return cls([folder.path for one in parts for folder in one.folders])

    def _require_alike(self) -> None:
        first, *others = self.specs
        for folder, other in zip(self.folders[1:], others, strict=True):
            for part in ("points", "reduce"):
                told = differences({part: first[part]}, {part: other[part]})
                if told:
                    raise InputError(f"{folder.path} cannot be joined to the others: {told}.")

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((one.shard.tokens for one in self.stored), initial=0))

    def __len__(self) -> int:
        """Entries: tokens that were kept, or rows that were reduced."""
        return self._starts[-1]

    @property
    def points(self) -> tuple[str, ...]:
        """The names of the tensors of activations."""
        if not self.stored:
            return tuple(self.specs[0]["points"])
        return tuple(one for one in self._file(0).keys() if one not in BESIDE)  # noqa: SIM118

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all tensors with an entry for each token."""
        return (*self.points, TOKENS, POSITIONS, ROWS, DOCUMENTS)

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
        return self.column(self._canonical(name))

    def _canonical(self, name: Name) -> str:
        known = self.points
        if isinstance(name, str) and name in known:
            return name
        short, layer = (name, None) if isinstance(name, str) else (name[0], name[1])
        if isinstance(name, tuple) and layer is not None and layer < 0:
            layer += int(self.specs[0]["model"]["n_layers"])
            name = (name[0], layer, *name[2:])
        base, _, part = short.partition(".") if not LAYER.match(short) else (short, "", "")
        if isinstance(name, tuple) or is_short(base):
            rest = () if isinstance(name, str) else name[1:]
            full = expand_short(base, *rest) + (f".{part}" if part else "")
            if full in known:
                return full
        raise InputError(
            f"{name!r} was not harvested.{suggest(short, known)} There are: {', '.join(known)}."
        )

    def column(self, name: str) -> Column:
        """One tensor by its full name, over all shards."""
        return Column(name, self._starts, self._read)

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

        Shapes: `[entry, ...]`

        Raises:
            InputError: nothing of it is here.
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in self.columns}
        for index, one in enumerate(self.stored):
            first, last = one.shard.documents
            if first <= number <= last:
                mask = self._read(index, DOCUMENTS, slice(None)) == number
                for name, found in parts.items():
                    found.append(self._read(index, name, slice(None))[mask])
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
        """What is kept of one row of a shard, by name. Shapes: `[entry, ...]`"""
        offsets = self.offsets(shard)
        part = slice(int(offsets[row]), int(offsets[row + 1]))
        return {name: self._read(shard, name, part) for name in self.columns}

    def offsets(self, shard: int) -> Tensor:
        """Where the entries of each row of a shard begin. Shapes: `[row + 1]`"""
        found: Tensor = self._file(shard).get_tensor(OFFSETS)
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
        names = self.points if points is None else [self._canonical(one) for one in points]
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
            context: entries of a row. None: the rows that were run, which have to be of one length.

        Raises:
            InputError: rows have different lengths, or `datasets` is not installed.
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
            yield {name: self._read(index, name, slice(None)) for name in self.columns}

    def where(self, entry: int) -> tuple[int, int]:
        """The shard of an entry, and its place in there."""
        shard = bisect_right(self._starts, entry) - 1
        return shard, entry - self._starts[shard]

    def _file(self, shard: int) -> Any:
        if shard not in self._open:
            path = self.stored[shard].path
            try:
                self._open[shard] = safe_open(path, framework="pt")
            except Exception as error:
                raise InputError(f"{path} cannot be read: {error}") from error
        return self._open[shard]

    def _read(self, shard: int, name: str, part: slice) -> Tensor:
        found: Tensor = self._file(shard).get_slice(name)[part]
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, so that workers of a DataLoader open their own."""
        return {**self.__dict__, "_open": {}}


def _whole(folder: Folder, check: bool) -> dict[int, Shard]:
    """The finished shards of a folder.

    Raises:
        InputError: the file of one is missing or not as it was written.
    """
    shards = folder.shards()
    damaged = folder.damaged(shards, thorough=check)
    if damaged:
        number, what = next(iter(damaged.items()))
        raise InputError(
            f"{folder.path / shards[number].file} {what}. Run the harvest again with resume=True: "
            "it makes this shard anew."
        )
    return shards

"""Activations as other libraries read them: PyTorch, datasets (SAELens), Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lensbridge.errors import InputError
from lensbridge.harvest.columns import Column
from lensbridge.harvest.computing import ROWS, TOKENS
from lensbridge.harvest.parquet import pyarrow_parquet


class Readable(Protocol):
    """What is exported: `Activations`."""

    @property
    def specs(self) -> list[dict[str, Any]]:
        """What each harvest is of."""

    @property
    def points(self) -> tuple[str, ...]:
        """The names of the tensors of activations."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all tensors with an entry for each token."""

    def __len__(self) -> int:
        """Entries."""

    def column(self, name: str) -> Column:
        """One tensor, over all shards."""

    def shards(self) -> Iterator[Mapping[str, Tensor]]:
        """The tensors of one shard after another."""


class TorchRows(Dataset[dict[str, Tensor]]):
    """One entry for each index, with all tensors of the activations.

    Args:
        acts: the activations.
    """

    def __init__(self, acts: Readable) -> None:
        self._acts = acts
        self._columns = {name: acts.column(name) for name in acts.columns}

    def __len__(self) -> int:
        """How many entries."""
        return len(self._acts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One entry. Shapes: `[...]`, without an axis of entries"""
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no entry {index}: there are {len(self)}.")
        return {name: column[index] for name, column in self._columns.items()}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """Several entries, which a DataLoader asks for at once."""
        found = {name: column[indices] for name, column in self._columns.items()}
        return [{name: one[i] for name, one in found.items()} for i in range(len(indices))]


def to_datasets(acts: Readable, context: int | None) -> Any:
    """A `datasets.Dataset` with rows of `context` entries; see `Activations.to_datasets`."""
    if context is not None and context < 1:
        raise InputError(f"context={context} is too small: it is 1 or more.")
    length = context or _row_length(acts)
    if len(acts) < length:
        raise InputError(f"There are {len(acts)} entries, too few for a row of {length}.")
    try:
        from datasets import Array2D, Dataset, Features, Sequence, Value
    except ImportError as error:
        raise InputError(
            "A dataset needs the library datasets: pip install 'lensbridge[datasets]'."
        ) from error
    columns = {name: acts.column(name) for name in acts.points}
    points = {
        name: Array2D((length, one.shape[1:].numel()), _name(_plain(one.dtype)))
        for name, one in columns.items()
    }
    features = Features({**points, "token_ids": Sequence(Value("int32"), length=length)})

    def rows() -> Any:
        yield from _rows(acts, columns, length)

    return Dataset.from_generator(rows, features=features)


def _rows(acts: Readable, columns: Mapping[str, Column], length: int) -> Iterator[dict[str, Any]]:
    """Every full row of so many entries, as arrays of numpy."""
    for start in range(0, len(acts) // length * length, length):
        part = slice(start, start + length)
        found = {name: one[part].reshape(length, -1) for name, one in columns.items()}
        values = {name: one.to(_plain(one.dtype)).numpy() for name, one in found.items()}
        yield {**values, "token_ids": acts.column(TOKENS)[part].numpy()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _row_length(acts: Readable) -> int:
    """The number of entries of every row; the last row of all may be shorter.

    Joined documents were cut anywhere, so where some of their tokens were not kept and rows differ,
    the entries are cut again, into rows as long as the longest.

    Raises:
        InputError: rows of documents have different lengths.
    """
    rows = [one.unique_consecutive(return_counts=True)[1] for one in acts.column(ROWS).shards()]
    every = torch.cat(rows) if rows else torch.tensor([])
    same = len(every) and not bool((every[:-1] != every[0]).any()) and every[-1] <= every[0]
    if not same and all(one["rows"]["packing"] == "concat" for one in acts.specs) and len(every):
        return int(every.max())
    if not same:
        raise InputError(
            "The rows have different lengths, and a dataset's are of one: pass context=N, which "
            "cuts the entries into rows of N, or harvest with packing='concat'."
        )
    return int(every[0])


def _plain(dtype: torch.dtype) -> torch.dtype:
    """A dtype that numpy, Arrow and Parquet have."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def to_parquet(acts: Readable, path: Path) -> Path:
    """One Parquet file, written shard after shard; see `Activations.to_parquet`."""
    parquet = pyarrow_parquet()
    import pyarrow

    writer = None
    try:
        for shard in acts.shards():
            table = pyarrow.table({name: _array(one) for name, one in shard.items()})
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise InputError("There are no entries to write.")
    return path


def _array(values: Tensor) -> Any:
    """A tensor as an array of Arrow. Shapes: `[entry]` or, flattened, `[entry, width]`"""
    import pyarrow

    plain = values.to(_plain(values.dtype)).numpy()
    if plain.ndim == 1:
        return pyarrow.array(plain)
    flat = plain.reshape(len(plain), values.shape[1:].numel())
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.ravel()), flat.shape[1])

"""Shards: the tensors of finished shards by name, mapped from the files of some folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from lensbridge.errors import InputError, suggest
from lensbridge.harvest.columns import Column
from lensbridge.harvest.computing import BESIDE, DOCUMENTS, POSITIONS, ROWS, TOKENS
from lensbridge.harvest.differences import differences
from lensbridge.harvest.folder import Folder
from lensbridge.harvest.manifest import Shard
from lensbridge.points.names import LAYER, Name, expand_short, is_short


@dataclass(frozen=True)
class Stored:
    """One shard of one folder."""

    folder: Folder
    shard: Shard

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder.path / self.shard.file


class Shards:
    """The shards of folders, in order.

    Args:
        folders: a folder, or several.
        check: compare the checksums of all files first.

    Raises:
        InputError: a folder has no harvest, a file is missing or damaged, or folders differ in
            their points.
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

    def _require_alike(self) -> None:
        first, *others = self.specs
        for folder, other in zip(self.folders[1:], others, strict=True):
            for part in ("points", "reduce"):
                told = differences({part: first[part]}, {part: other[part]})
                if told:
                    raise InputError(f"{folder.path} cannot be joined to the others: {told}.")

    @cached_property
    def starts(self) -> list[int]:
        """The first entry of each shard, and at the end the number of all."""
        return list(accumulate((one.shard.tokens for one in self.stored), initial=0))

    def __len__(self) -> int:
        """Entries: tokens that were kept, or rows that were reduced."""
        return self.starts[-1]

    @property
    def points(self) -> tuple[str, ...]:
        """The names of the tensors of activations."""
        if not self.stored:
            return tuple(self.specs[0]["points"])
        return tuple(one for one in self.file(0).keys() if one not in BESIDE)  # noqa: SIM118

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all tensors with an entry for each token."""
        return (*self.points, TOKENS, POSITIONS, ROWS, DOCUMENTS)

    def canonical(self, name: Name) -> str:
        """The name of a tensor, for any accepted spelling of a point.

        Raises:
            InputError: it was not harvested.
        """
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
        return Column(name, self.starts, self.read)

    def file(self, shard: int) -> Any:
        """The file of a shard, opened once.

        Raises:
            InputError: it cannot be read.
        """
        if shard not in self._open:
            path = self.stored[shard].path
            try:
                self._open[shard] = safe_open(path, framework="pt")
            except Exception as error:
                raise InputError(f"{path} cannot be read: {error}") from error
        return self._open[shard]

    def read(self, shard: int, name: str, part: slice) -> Tensor:
        """Some entries of a tensor of a shard. Shapes: `[entry, ...]`"""
        found: Tensor = self.file(shard).get_slice(name)[part]
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

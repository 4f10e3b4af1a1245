"""Harvest: the shards of a folder, read one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest.manifest import Manifest


@dataclass(frozen=True)
class Harvest:
    """The finished shards of a harvest, in order.

    Args:
        folder: where they are.
        manifest: what they are of.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> "Harvest":
        """The harvest in a folder.

        Raises:
            InputError: there is none.
        """
        manifest = Manifest.read(Path(folder))
        if manifest is None:
            raise InputError(f"There is no manifest.json in {folder}, so it is no harvest.")
        return cls(Path(folder), manifest)

    def __len__(self) -> int:
        """How many shards."""
        return len(self.manifest.shards)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """The tensors of one shard, by name of the point; and `tokens`, `lines`, `rows`,
        `positions`.

        Shapes: `[token, ...]`
        """
        return load_file(self.folder / self.manifest.shards[number].file)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

"""Shards: activations that are gathered in memory and written when they are enough."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lensbridge.harvest.manifest import FORMAT, Shard

TOKENS, LINES, ROWS, POSITIONS = "tokens", "lines", "rows", "positions"
"""Tensors that stand beside the activations, each `[token]`: the id; the line of the file, or -1
for a BOS put before a packed row; the row of the shard; the position in that row."""


@dataclass
class Gathered:
    """What was run since the last shard.

    Args:
        parts: name -> tensors, each `[token, ...]`.
        rows: how many rows.
        bytes: of all tensors.
        tokens: how many.
    """

    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, tensors: Mapping[str, Tensor], rows: int) -> None:
        """Keep the tensors of some more rows."""
        for name, tensor in tensors.items():
            self.parts.setdefault(name, []).append(tensor)
            self.bytes += tensor.nbytes
        self.rows += rows
        self.tokens += len(tensors[TOKENS])

    def write(self, folder: Path, number: int) -> Shard:
        """Write a shard. It gets its name once it is complete, so a crash leaves no broken one."""
        name = f"shard-{number:05d}.safetensors"
        path, new = folder / name, folder / f"{name}.new"
        tensors = {}
        for key in list(self.parts):  # one at a time, so that memory holds none of them twice
            tensors[key] = torch.cat(self.parts.pop(key))
        save_file(tensors, new, metadata={"format": FORMAT})
        os.replace(new, path)
        return Shard(name, self.tokens, self.rows, path.stat().st_size)

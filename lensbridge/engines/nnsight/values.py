"""Values of the server as a recorder knows them, and where tensors are in calls of modules."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lensbridge.engines.nnsight.block import Block, Path, Read, Side, Write
from lensbridge.sites.call import Call


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that is known on the server.

    Args:
        block: where it is computed.
        text: its variable; None: it is read when it is first used.
        read: where it is read.
        path: where it is in there.
    """

    block: Block
    text: str | None
    read: Read | None = None
    path: Path = ()

    def name(self) -> str:
        """Its variable."""
        if self.text is not None:
            return self.text
        assert self.read is not None
        return self.read.variable(self.path)


@dataclass(eq=False)
class Visited:
    """One side of one call of a module, on which several sites may act."""

    read: Read
    write: Write
    call: Call


def paths(value: Any, at: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in nested tuples and mappings, with its path."""
    if isinstance(value, Tensor):
        yield at, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from paths(one, (*at, key))
    elif isinstance(value, tuple | list):
        for i, one in enumerate(value):
            yield from paths(one, (*at, i))


def leaves(side: Side, call: Call) -> dict[Path, Tensor]:
    return dict(paths(call.output if side == "output" else (call.args, call.kwargs)))


def without_masks(index: Any) -> Any:
    """An index with numbers in the place of masks that are known here, so that sizes are known."""
    if not isinstance(index, Tensor | tuple):
        return index
    parts = index if isinstance(index, tuple) else (index,)
    found: list[Any] = []
    for one in parts:
        known = isinstance(one, Tensor) and not isinstance(one, FakeTensor)
        found += one.nonzero(as_tuple=True) if known and one.dtype is torch.bool else [one]
    return tuple(found) if len(found) > 1 or isinstance(index, tuple) else found[0]


def first_of(call: Call) -> Path | None:
    """Where nnsight finds what it calls `.input`: the first positional argument, else the first
    keyword.
    """
    if call.args:
        return (0, 0)
    return (1, next(iter(call.kwargs))) if call.kwargs else None

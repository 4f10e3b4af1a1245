"""A GGUF file's header, read once and in an instant.

transformers reads a header with `gguf.GGUFReader`, which makes a NumPy object for every token of
the vocabulary, and it does so three to five times for one model. It then builds the table of
tensor names again for every module of the model. Both took longer than the weights themselves.
While `fast_reading` is active, transformers gets the reader of this module and one table; what it
does with them is its own code, so that a model comes out as it would without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from struct import Struct
from threading import RLock
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType, ReaderField

from lensbridge.forks import in_forked
from lensbridge.loading.gguf.naming import parts_of

_lock = RLock()
_LENGTH = Struct("=Q")
_ARRAY_HEAD = 12
"""Bytes before the values of an array: the type of a value, and how many there are."""


@in_forked
def _renew_lock() -> None:
    """In a forked process no other thread reads."""
    global _lock
    _lock = RLock()


class FastReader(GGUFReader):
    """gguf's reader, which slices plain memory and reads an array of strings in one loop.

    A file in several parts has the tensors of all.
    """

    def __init__(self, path: Any, mode: Any = "r") -> None:
        super().__init__(path, mode)
        if value_of(self, "split.no") == 0:
            for name in parts_of(Path(path).name)[1:]:
                self.tensors += FastReader(Path(path).with_name(name)).tensors

    @property
    def data(self) -> Any:
        """The file, mapped into memory."""
        return self._mapped

    @data.setter
    def data(self, mapped: Any) -> None:
        self._mapped = mapped.view(np.ndarray)  # to slice a memmap takes ten times as long

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, count = GGUFValueType(int(head[0][0])), int(head[1][0])
        if kind == GGUFValueType.ARRAY or not count:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [GGUFValueType.ARRAY, kind]
        if kind == GGUFValueType.STRING:
            strings, end = self._strings(orig_offs + _ARRAY_HEAD, count)
            return end - orig_offs, head + strings, list(range(3, 3 + 2 * count, 2)), types
        values = self._get(orig_offs + _ARRAY_HEAD, self.gguf_scalar_to_np[kind], count)
        size = _ARRAY_HEAD + int(values.nbytes)
        return size, [*head, *values.reshape(-1, 1)], list(range(2, 2 + count)), types

    def _strings(self, start: int, count: int) -> tuple[list[Any], int]:
        """Lengths and bytes of strings, in turn, and where they end."""
        data, length_at, parts = self.data, _LENGTH.unpack_from, []
        buffer = memoryview(data)
        for _ in range(count):
            text = start + _LENGTH.size
            end = text + length_at(buffer, start)[0]
            parts += [data[start:text], data[text:end]]
            start = end
        return parts, start


@contextmanager
def fast_reading() -> Iterator[None]:
    """Whoever reads GGUF reads each file's header once, and builds each table of names once."""
    with _lock:
        kept = gguf.GGUFReader, gguf.get_tensor_name_map
        gguf.GGUFReader = lru_cache(maxsize=None)(FastReader)  # type: ignore[misc, assignment]
        gguf.get_tensor_name_map = lru_cache(maxsize=None)(kept[1])
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = kept  # type: ignore[misc]


def value_of(reader: GGUFReader, key: str) -> Any:
    """One number or string of the header; None if it is not there."""
    field: ReaderField | None = reader.fields.get(key)
    if field is None:
        return None
    part = field.parts[field.data[0]]
    return bytes(part).decode() if field.types[0] == GGUFValueType.STRING else part[0].item()

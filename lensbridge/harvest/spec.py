"""What a harvest runs and what it keeps of it. All that a shard depends on is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from lensbridge.errors import InputError, suggest
from lensbridge.harvest.reductions import Reduction, as_reduction

if TYPE_CHECKING:
    from lensbridge.points.names import Name

Packing: TypeAlias = Literal["concat", "pad", "document"]
"""How documents become rows. concat: they are joined and cut into rows of one length; only the last
row of all is shorter. pad: a row for each document, cut after `length` tokens. document: a
document that is longer than a row goes on in further rows."""

Separator: TypeAlias = Literal["eos", "bos", "sep"] | int | None
"""What stands after each document in "concat": a special token, an id, or nothing."""


def require_word(what: str, value: object, words: Sequence[str]) -> None:
    """Require one of some words.

    Raises:
        InputError: it is none of them.
    """
    if value not in words:
        raise InputError(
            f"{what} is one of {', '.join(map(repr, words))}, not {value!r}."
            f"{suggest(str(value), words)}"
        )


@dataclass(frozen=True)
class Rows:
    """How the documents of a harvest become rows of tokens.

    Args:
        length: tokens of a row at most, BOS included. None: the context of the model, and 1024 at
            most.
        packing: "concat" (no padding), "pad" (a row for each document) or "document" (long
            documents in several rows).
        separator: what stands after each document in "concat".
        bos: whether each row begins with BOS. None: as the model's tokenizer does for text, and
            not where documents are ids.

    Raises:
        InputError: an unknown packing or separator, or a length below 2.
    """

    length: int | None = None
    packing: Packing = "concat"
    separator: Separator = "eos"
    bos: bool | None = None

    def __post_init__(self) -> None:
        require_word("packing", self.packing, get_args(Packing))
        if isinstance(self.separator, str):
            require_word("separator", self.separator, ("eos", "bos", "sep"))
        if self.length is not None and self.length < 2:
            raise InputError(f"length={self.length} is too small: a row has 2 tokens or more.")


@dataclass(frozen=True)
class Keep:
    """Which tokens of a row are kept.

    Args:
        bos: whether BOS is kept.
        pad: whether the padding of short rows is kept. Only "pad" and "document" have any.
        special: whether other special tokens (EOS, separators) are kept.
        positions: which positions of each row, counted in its own tokens: a slice, or a list.
    """

    bos: bool = True
    pad: bool = False
    special: bool = True
    positions: slice | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.positions, int):
            object.__setattr__(self, "positions", [self.positions])


@dataclass(frozen=True)
class Spec:
    """What a harvest is of.

    A shard is a function of this and of its number alone: its rows, their order and the
    composition of each batch do not depend on who computes it or when.

    Args:
        model: a hub id, a folder or "demo", which is loaded when it is needed; or a loaded model.
        data: files of texts (`.txt` with a text for each line, `.jsonl`, `.parquet`), one or
            several; or a list or a `datasets.Dataset` of texts, of chats or of rows of ids; or an
            iterable that gives the same each time.
        points: names, short names or globs of points that have a value for each token.
        layers: the layers of short names without one. None: all.
        rows: how documents become rows.
        keep: which tokens of a row are kept.
        reduce: what is stored instead of the values: "mean", "last", "norm", or a reduction of
            `lensbridge.harvest`. It is computed in float32.
        dtype: the dtype that is stored; None: the model's.
        batch: rows that run together.
        shard_tokens: tokens that are run for a shard, at most.
        field: the field of the text in records (`.jsonl`, `.parquet`, datasets).
        max_tokens: stop after the row with which so many tokens were run.

    Raises:
        InputError: a number that is too small, or an unknown word.
    """

    model: Any
    data: Any
    points: Sequence[Name]
    layers: Sequence[int] | None = None
    rows: Rows = field(default_factory=Rows)
    keep: Keep = field(default_factory=Keep)
    reduce: str | Reduction | None = None
    dtype: Any = None
    batch: int = 16
    shard_tokens: int = 262_144
    field: str = "text"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.points, str) or (
            isinstance(self.points, tuple) and len(self.points) > 1 and type(self.points[1]) is int
        ):
            object.__setattr__(self, "points", [self.points])
        if isinstance(self.layers, int):
            object.__setattr__(self, "layers", [self.layers])
        if not self.points:
            raise InputError("Name at least one point. model.hook_names lists them all.")
        for name in ("batch", "shard_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} is too small: it is 1 or more.")
        if self.reduce is not None:
            object.__setattr__(self, "reduce", as_reduction(self.reduce))


FIELDS = tuple(one.name for one in fields(Spec))
"""The fields of a harvest, as they are in JSON."""

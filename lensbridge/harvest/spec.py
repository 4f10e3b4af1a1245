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

    Raises:
        InputError: the positions are a word.
    """

    bos: bool = True
    pad: bool = False
    special: bool = True
    positions: slice | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.positions, str):
            raise InputError(
                f"positions is a slice, such as slice(1, None), or a list, not {self.positions!r}."
            )
        if isinstance(self.positions, int):
            object.__setattr__(self, "positions", [self.positions])


@dataclass(frozen=True)
class Spec:
    """What a harvest is of: the fields of `Harvest`, which says what each of them is.

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
        for name, kind in (("rows", Rows), ("keep", Keep)):
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(
                    f"{name} is lensbridge.{kind.__name__}(...), not {type(value).__name__}."
                )
        if self.reduce is not None:
            object.__setattr__(self, "reduce", as_reduction(self.reduce))


FIELDS = tuple(one.name for one in fields(Spec))
"""The fields of a harvest, as they are in JSON."""

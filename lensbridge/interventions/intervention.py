"""Intervention: what all kinds share: where and when they act, and how they are checked."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.inputs.special import Excluded
from lensbridge.interventions.arguments import as_basis, as_indices
from lensbridge.interventions.columns import Positions, normalized
from lensbridge.interventions.functions import name_of
from lensbridge.interventions.region import Region
from lensbridge.interventions.source import Source, SourceValues, StoredSource
from lensbridge.interventions.when import ALWAYS, When
from lensbridge.points.point_names import NamesFilter
from lensbridge.tensors.positions import Count, check_count

Indices: TypeAlias = "int | tuple[int, ...] | list[int] | range | Tensor | None"
"""Heads or neurons: one, several, or None for all."""


@dataclass(frozen=True, eq=False, repr=False)
class Intervention(ABC):
    """An edit of one activation, or of several.

    Args:
        site: a point in any accepted spelling, a glob, or a list of these.
        positions: which tokens of each text (`columns.Positions`): None for all, an int, "last", a
            slice, a list, a list for each example, or a mask of bools, `[column]` or
            `[example, column]`.
        heads: which heads of a point that has them.
        neurons: which entries of the last axis: neurons, dimensions, features, experts.
        keys: which positions are attended to, in scores and patterns.
        subspace: `[d, k]` with orthonormal columns; only the coordinates along these change. A
            direction `[d]` of any length means the line along it.
        when: "prefill", "decode", "both", or a `When` with steps.
        count: what positions and keys count: "tokens" of each text, also where a batch is padded,
            or "columns" of the batch, padding included.
        examples: which examples of the run are edited; None for all. The others stay as they are,
            and all else that is given for each example (positions, values, a source) is given for
            these, in their order. A source may also have as many examples as the run.

    Interventions of a list that act on the same point do so in the order of the list.
    """

    site: NamesFilter
    positions: Positions = field(default=None, kw_only=True)
    heads: Indices = field(default=None, kw_only=True)
    neurons: Indices = field(default=None, kw_only=True)
    keys: Positions = field(default=None, kw_only=True)
    subspace: Tensor | None = field(default=None, kw_only=True)
    when: When | str = field(default=ALWAYS, kw_only=True)
    count: Count = field(default="tokens", kw_only=True)
    examples: Indices = field(default=None, kw_only=True)

    on_integers: ClassVar[bool] = False
    """Whether it can act on integers, which are the indices of chosen experts."""

    def __post_init__(self) -> None:
        if self.site is None:
            raise InputError(f"{type(self).__name__} has no site: name a point.")
        if isinstance(self.site, list):
            self._set("site", tuple(self.site))
        self._set("positions", normalized(self.positions))
        self._set("keys", normalized(self.keys))
        self._set("heads", as_indices("heads", self.heads))
        self._set("neurons", as_indices("neurons", self.neurons))
        self._set("examples", as_indices("examples", self.examples))
        self._set("when", When.of(self.when))
        check_count(self.count)
        if self.subspace is not None:
            self._set("subspace", as_basis(self.subspace))
        if self.subspace is not None and (self.neurons is not None or self.keys is not None):
            raise InputError("A subspace is of the whole last axis: leave out neurons and keys.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @abstractmethod
    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        """The new value of a region; `given` is the activation of the source, if there is one.

        Shapes: as `region.value`.
        """

    @property
    def seen_subspace(self) -> Tensor | None:
        """The subspace whose coordinates `act` gets; None: it gets the vectors themselves."""
        return self.subspace

    @property
    def origin(self) -> Source | None:
        """Where values are taken from; None: from the run itself, or no values are needed."""
        return None

    @property
    def pairs_columns(self) -> bool:
        """Whether each column takes values from one column of a source."""
        return True

    @property
    def pairs_examples(self) -> bool:
        """Whether each example takes values from one example of a source."""
        return False

    @property
    def mixes_examples(self) -> bool:
        """Whether examples of the run get values of other examples of it."""
        return False

    @property
    def mixes_positions(self) -> bool:
        """Whether what it makes of a position may depend on what is at others."""
        return self.mixes_examples

    @property
    def works_by_row(self) -> bool:
        """Whether an example becomes the same in whichever row of whatever batch it is."""
        return not self.mixes_examples and self.examples is None

    @property
    def left_out(self) -> Excluded:
        """Which tokens have to be known, because means leave them out."""
        return False

    @property
    def other_positions(self) -> Any:
        """Normalized positions in the source; None: those in the run."""
        return None

    def chosen(self, count: int, what: str) -> tuple[int, ...] | None:
        """The numbers of the examples that are edited; None: all.

        Args:
            count: how many there are.
            what: the point, for the message.

        Raises:
            InputError: one is out of range, or named twice.
        """
        asked: Any = self.examples
        if asked is None:
            return None
        for one in asked:
            if not -count <= one < count:
                raise InputError(f"{what}: example {one} is out of range; there are {count}.")
        found = tuple(one % count for one in asked)
        if len(set(found)) < len(found):
            raise InputError(f"{what}: examples {asked} name one twice.")
        return found

    def others(self, count: int, what: str) -> tuple[int, ...] | None:
        """For each edited example, the one of the run whose values it reads; None: none is read so.

        Raises:
            InputError: there is no such example.
        """
        return None

    def check_value(self, wanted: tuple[int | None, ...], what: str) -> None:
        """Refuse values that do not fit a region.

        Args:
            wanted: the region's shape; None for a size that only the run shows.
            what: the point, for the message.
        """
        return

    def check_rows(self, rows: int, what: str) -> None:
        """Refuse a number of examples that the intervention cannot use."""
        return

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        names = [member.name for member in fields(self)]
        return all(_same(self._member(name), other._member(name)) for name in names)

    def _member(self, name: str) -> Any:
        """A member; of a cache, the activations at the site."""
        value = vars(self)[name]
        return StoredSource.of(value, self.site) if isinstance(value, ActivationCache) else value

    def __repr__(self) -> str:
        """The members that differ from their defaults, with the shapes of tensors."""
        shown = [_shown(self.site)]
        for member in fields(self)[1:]:
            value = vars(self)[member.name]
            if value is not member.default and not _same(value, member.default):
                shown.append(f"{member.name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __hash__(self) -> int:
        return hash((type(self), repr(self.site)))

    def at(self, **changes: Any) -> Any:
        """A copy with other members: `zero.at(positions=3, heads=[1])`."""
        return replace(self, **changes)


def _shown(value: Any) -> str:
    if callable(value) and name_of(value) is not None:
        return repr(name_of(value))
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, Mapping) and not isinstance(value, ActivationCache):
        return f"{{{', '.join(f'{key!r}: {_shown(one)}' for key, one in value.items())}}}"
    return repr(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if not all(map(_same, _masks(one), _masks(other))):
            return False
        return set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _masks(source: Mapping[Any, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    if not isinstance(source, StoredSource):
        return None, None
    return source.attention_mask, source.decoder_attention_mask

"""Intervention: what all kinds of them share: where they act, when, and how they are checked."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeAlias

import torch
from numpy import ndarray
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.interventions.columns import Positions, is_int, normalized
from lensbridge.interventions.region import Region
from lensbridge.interventions.source import Source, SourceValues, StoredSource
from lensbridge.interventions.when import ALWAYS, When
from lensbridge.points.point_names import NamesFilter

Indices: TypeAlias = "int | tuple[int, ...] | list[int] | range | Tensor | None"
"""Heads or neurons: one, several, or None for all."""

_ORTHONORMAL = 1e-3
"""How far the products of a basis may be from 0 and 1."""


@dataclass(frozen=True, eq=False, repr=False)
class Intervention(ABC):
    """A change of one activation, or of several, at a place.

    Args:
        site: a point in any accepted spelling, a glob, or a list of these.
        positions: which columns (`columns.Positions`): None, an int, "last", a slice, a list, or a
            list for each example.
        heads: which heads of a point that has them.
        neurons: which entries of the last axis: neurons, dimensions, features, experts.
        keys: which positions are looked at, in scores and patterns.
        subspace: `[d, k]` with orthonormal columns; only the coordinates along these change. A
            direction `[d]` of any length is the line along it.
        when: "prefill", "decode", "both", or a `When` with steps.

    Interventions in a list act in its order where they meet at one point.
    """

    site: NamesFilter
    positions: Positions = field(default=None, kw_only=True)
    heads: Indices = field(default=None, kw_only=True)
    neurons: Indices = field(default=None, kw_only=True)
    keys: Positions = field(default=None, kw_only=True)
    subspace: Tensor | None = field(default=None, kw_only=True)
    when: When | str = field(default=ALWAYS, kw_only=True)

    on_integers: ClassVar[bool] = False
    """Whether it can act on choices of experts, which are numbers of things."""

    def __post_init__(self) -> None:
        if self.site is None:
            raise InputError(f"{type(self).__name__} has no site: name a point.")
        if isinstance(self.site, list):
            self._set("site", tuple(self.site))
        self._set("positions", normalized(self.positions))
        self._set("keys", normalized(self.keys))
        self._set("heads", _indices("heads", self.heads))
        self._set("neurons", _indices("neurons", self.neurons))
        self._set("when", When.of(self.when))
        if self.subspace is not None:
            self._set("subspace", _basis(self.subspace))
        if self.subspace is not None and (self.neurons is not None or self.keys is not None):
            raise InputError("A subspace is of the whole last axis: leave neurons and keys out.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @abstractmethod
    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        """The new value of a region; `given` is the source's activation, where there is one.

        Shapes: as `region.value`.
        """

    @property
    def seen_subspace(self) -> Tensor | None:
        """The subspace whose coordinates `act` is given; None: the vectors themselves."""
        return self.subspace

    @property
    def origin(self) -> Source | None:
        """Where values are taken from, other than the run itself."""
        return None

    @property
    def pairs_columns(self) -> bool:
        """Whether columns of a source are taken for columns of the run."""
        return True

    @property
    def pairs_examples(self) -> bool:
        """Whether examples of a source are taken for examples of the run, one by one."""
        return False

    @property
    def mixes_examples(self) -> bool:
        """Whether examples of the run get values of one another."""
        return False

    @property
    def other_positions(self) -> Any:
        """Normalized positions in the source; None: those in the run."""
        return None

    def check_value(self, wanted: tuple[int | None, ...], what: str) -> None:
        """Refuse values that do not fit a region.

        Args:
            wanted: the region's shape; None where the run alone will tell.
            what: the point, for the message.
        """
        return

    def check_rows(self, rows: int, what: str) -> None:
        """Refuse a number of examples that it cannot work with."""
        return

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(self._told(one.name), other._told(one.name)) for one in fields(self))

    def _told(self, name: str) -> Any:
        """A member; of a cache, the part that counts."""
        value = vars(self)[name]
        return StoredSource.of(value, self.site) if isinstance(value, ActivationCache) else value

    def __repr__(self) -> str:
        """What differs from the defaults; of tensors their shapes."""
        told = [_shown(self.site)]
        for one in fields(self)[1:]:
            value = vars(self)[one.name]
            if value is not one.default and not _same(value, one.default):
                told.append(f"{one.name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(told)})"

    def __hash__(self) -> int:
        return hash((type(self), repr(self.site)))

    def at(self, **changes: Any) -> Any:
        """The same somewhere else: `one.at(positions=3, heads=[1])`."""
        return replace(self, **changes)


def _indices(what: str, given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    plain = given.tolist() if isinstance(given, Tensor | ndarray) else given
    several = plain if isinstance(plain, list | tuple | range) else (plain,)
    if not several or not all(is_int(one) for one in several):
        raise InputError(f"{what} is an int or a list of ints, not {given!r}.")
    return tuple(int(one) for one in several)


def _basis(given: Any) -> Tensor:
    """A subspace as its basis, in one layout, so that products round alike when it comes back from
    a file.
    """
    basis = torch.as_tensor(given)
    if basis.ndim == 1 and bool(basis.any()):
        basis = (basis / basis.norm()).unsqueeze(-1)
    check_basis(basis)
    return basis.contiguous()


def check_basis(basis: Tensor) -> None:
    """Refuse a matrix that is no orthonormal basis.

    Raises:
        InputError: of another shape, or its columns are not orthonormal.
    """
    if basis.ndim != 2 or basis.shape[0] < basis.shape[1]:
        raise InputError(
            "A subspace is [d, k] with k at most d, a basis in its columns, or a direction [d] "
            f"that is not zero; got shape {tuple(basis.shape)}."
        )
    wide = basis.detach().double()
    off = (wide.T @ wide - torch.eye(basis.shape[1], dtype=wide.dtype, device=wide.device)).abs()
    if float(off.max()) > _ORTHONORMAL:
        raise InputError(
            f"The columns of the subspace are not orthonormal (off by {float(off.max()):.3g}). "
            "Use torch.linalg.qr(basis).Q."
        )


def check_broadcast(
    value: Tensor | float, wanted: tuple[int | None, ...], what: str, name: str
) -> None:
    """Refuse a value that does not broadcast to a region.

    Raises:
        InputError: with both shapes.
    """
    found = tuple(value.shape) if isinstance(value, Tensor) else ()
    pairs = list(zip(reversed(found), reversed(wanted), strict=False))
    fits = all(w is None or f in (1, w) for f, w in pairs) and len(found) <= len(wanted)
    if not fits:
        shown = ", ".join("?" if one is None else str(one) for one in wanted)
        raise InputError(
            f"{what}: {name} has shape {found}; it has to broadcast to the place's ({shown}): "
            "examples, positions, heads (where there are any), entries."
        )


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, Mapping) and not isinstance(value, ActivationCache):
        return f"{{{', '.join(f'{key!r}: {_shown(one)}' for key, one in value.items())}}}"
    return repr(value)


def as_value(given: Any, what: str) -> "Tensor | float":
    """A number or tensor; lists and arrays become tensors.

    Raises:
        InputError: something else.
    """
    if isinstance(given, Tensor | int | float) and not isinstance(given, bool):
        return given
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is a number or a tensor, not {given!r}.") from error


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if not _same(_mask(one), _mask(other)):
            return False
        return set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _mask(source: Mapping[Any, Tensor]) -> Tensor | None:
    return source.attention_mask if isinstance(source, StoredSource) else None

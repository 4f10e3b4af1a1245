"""Formulas: how a factor can be said with config fields, the most plausible first."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose, sqrt
from typing import Any, NamedTuple

_FACTOR = re.compile(r"scal|mult|factor|alpha|beta|gamma|damp|coef|tau", re.IGNORECASE)
_OTHER_USE = re.compile(r"drop|eps|theta|std|range|loss|rate|jitter|pdrop|sigma", re.IGNORECASE)
_LAYERS = re.compile(r"layers?$|depth$|blocks?$", re.IGNORECASE)
_WIDTH = re.compile(r"dim|width|d_model|embd|hidden_size|embedding_size|rank$|^d_", re.IGNORECASE)
_COUNT = re.compile(
    r"^(num|n)_|heads?$|vocab|position|token|_id$|expert|window|seq|ctx|kernel|chunk|group|max_"
    r"|context|batch|image|patch|label",
    re.IGNORECASE,
)
"""What the names of fields say that they are for. A count of something is no factor's origin."""


class Formula(NamedTuple):
    """One way to say a factor; a lower rank is more plausible."""

    rank: int
    text: str


@dataclass(frozen=True)
class Formulas:
    """Finds formulas over the fields of a config.

    Args:
        values: the fields.
        tolerance: how far a formula's value may be from the factor, relative to it.
    """

    values: Mapping[str, Any]
    tolerance: float = 1e-3

    def of(self, factor: float, by_layers: bool) -> list[Formula]:
        """Every formula with this value, the most plausible first.

        Args:
            factor: the factor.
            by_layers: whether it can depend on the number of layers, as that of a branch can.
        """
        found = [one for one, value in self._candidates(by_layers) if self._same(value, factor)]
        return sorted(dict.fromkeys(found), key=lambda one: one.rank)

    def _same(self, value: float, factor: float) -> bool:
        return isclose(value, factor, rel_tol=self.tolerance)

    def _candidates(self, by_layers: bool) -> Iterator[tuple[Formula, float]]:
        factors, widths = self._factors(), self._widths()
        layers = self._named(_LAYERS) if by_layers else {}
        yield from ((Formula(0, name), value) for name, value in factors.items())
        yield from ((Formula(1, name), value) for name, value in self._listed())
        yield from ((Formula(2, f"1 / {name}"), 1 / v) for name, v in factors.items() if v != 1)
        yield from self._of_base(widths)
        for name, v in widths.items():
            yield Formula(4, f"sqrt({name})"), sqrt(v)
            yield Formula(4, f"1 / sqrt({name})"), 1 / sqrt(v)
        for name, v in factors.items():
            yield from ((Formula(5, f"{name} / sqrt({n})"), v / sqrt(c)) for n, c in layers.items())
            for width, size in widths.items():
                yield Formula(6, f"{name} / sqrt({width})"), v / sqrt(size)
                yield Formula(6, f"{name} * sqrt({width})"), v * sqrt(size)
                yield Formula(6, f"{width} / {name}"), size / v
                yield Formula(6, f"{name} / {width}"), v / size
        yield from ((Formula(7, f"1 / sqrt({name})"), 1 / sqrt(v)) for name, v in layers.items())

    def _of_base(self, widths: dict[str, float]) -> Iterator[tuple[Formula, float]]:
        """A width beside the one for which the model was tuned (`dim_model_base`)."""
        for base in (name for name in widths if "base" in name):
            for other in (name for name in widths if "base" not in name):
                yield Formula(3, f"{base} / {other}"), widths[base] / widths[other]
                yield Formula(3, f"{other} / {base}"), widths[other] / widths[base]

    def _factors(self) -> dict[str, float]:
        """Fields that can be factors: fractions, and whole numbers that are called so."""
        found = {
            name: float(value)
            for name, value in self._numbers()
            if isinstance(value, float) or (_FACTOR.search(name) and not _COUNT.search(name))
        }
        return dict(sorted(found.items(), key=lambda one: _rank_of_factor(one[0])))

    def _widths(self) -> dict[str, float]:
        """Whole numbers that can be widths: first those that are called so."""
        usable = {
            name: float(value)
            for name, value in self._numbers()
            if isinstance(value, int) and value > 1 and not _LAYERS.search(name)
        }
        known = {name: value for name, value in usable.items() if _is_width(name)}
        others = {n: v for n, v in usable.items() if not _COUNT.search(n) and not _FACTOR.search(n)}
        return dict(sorted(known.items(), key=lambda one: "hidden_size" not in one[0])) | others

    def _named(self, pattern: re.Pattern[str]) -> dict[str, float]:
        whole = ((n, v) for n, v in self._numbers() if isinstance(v, int) and v > 1)
        fits = {name: float(value) for name, value in whole if pattern.search(name)}
        return {name: value for name, value in fits.items() if not _FACTOR.search(name)}

    def _numbers(self) -> Iterator[tuple[str, int | float]]:
        for name, value in self.values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
                yield name, value

    def _listed(self) -> Iterator[tuple[str, float]]:
        """The numbers in lists, such as `mlp_multipliers[1]`."""
        for name, held in self.values.items():
            if isinstance(held, (list, tuple)):
                numbers = (
                    (i, v) for i, v in enumerate(held) if type(v) is float and v not in (0, 1)
                )
                yield from ((f"{name}[{i}]", v) for i, v in numbers)


def _is_width(name: str) -> bool:
    return bool(_WIDTH.search(name)) and (name == "n_embd" or not _COUNT.search(name))


def _rank_of_factor(name: str) -> int:
    return 0 if _FACTOR.search(name) else 2 if _OTHER_USE.search(name) else 1

"""What came of one case with one tool."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["works", "caveat", "wrong", "error", "absent"]
ROUNDING = 1e-5
"""Of the largest value: what another order of float32 operations may change."""


class NotOffered(Exception):  # noqa: N818
    """A tool has no call for it; the message says what a user would write in its place."""


@dataclass(frozen=True)
class Outcome:
    """A verdict and its evidence.

    Args:
        kind: `works`; `caveat`: right under a condition; `wrong`: another result than the bare
            model's; `error`: raised; `absent`: the tool does not offer it.
        note: the condition, the difference, the message.
    """

    kind: Kind
    note: str = ""

    def as_json(self) -> dict[str, str]:
        """For the record."""
        return asdict(self)


def gap(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest value, in double precision."""
    if found.shape != wanted.shape:
        return float("inf")
    wide, other = found.detach().double(), wanted.detach().double()
    return float((wide - other).abs().max() / other.abs().max().clamp(min=1e-12))


def same(found: Tensor, wanted: Tensor) -> Outcome:
    """Bit for bit: rounding is a caveat, more is wrong."""
    if found.shape == wanted.shape and torch.equal(found, wanted):
        return Outcome("works")
    return _differs(found, wanted, "caveat", "not bit-identical")


def near(found: Tensor, wanted: Tensor) -> Outcome:
    """Equal up to rounding."""
    return _differs(found, wanted, "works", "")


def _differs(found: Tensor, wanted: Tensor, small: Kind, word: str) -> Outcome:
    if found.shape != wanted.shape:
        return Outcome("wrong", f"shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    off = gap(found, wanted)
    if off <= ROUNDING:
        return Outcome(small, word and f"{word}: off by {off:.0e}")
    return Outcome("wrong", f"off by {_percent(off)}")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 1e-3 else f"{share:.0e} of the largest value"


def is_true(condition: bool, otherwise: str) -> Outcome:
    """Works, or wrong with a reason."""
    return Outcome("works") if condition else Outcome("wrong", otherwise)


def with_notes(outcome: Outcome, notes: list[str]) -> Outcome:
    """What works under conditions that the tool's use has set works with a caveat."""
    if outcome.kind not in ("works", "caveat") or not notes:
        return outcome
    told = "; ".join(dict.fromkeys([*([outcome.note] if outcome.note else []), *notes]))
    return Outcome("caveat", told)


def attempt(run: Callable[[], Outcome]) -> Outcome:
    """The outcome of a case, whatever happens in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run()
    except NotOffered as missing:
        return Outcome("absent", str(missing))
    except Exception as error:
        return Outcome("error", first_line(error))


def first_line(error: BaseException) -> str:
    """The type and the message; of a traceback in a message, its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    traced = bool(lines) and lines[0].startswith("Traceback")
    printed = bool(lines) and lines[0].endswith("(")  # a module, and the message after it
    told = (lines[-1] if traced or printed else lines[0]) if lines else ""
    name = type(error).__name__
    text = told if told.startswith(name) else f"{name}: {told}"
    return text if len(text) <= 160 else text[:157] + "..."

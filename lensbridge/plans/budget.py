"""A limit on what a run may keep: refused before the run, with what would fit."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lensbridge.errors import InputError, LensbridgeError
from lensbridge.plans.plan import Plan
from lensbridge.viz.numbers import bytes_as_text

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)

_MOST_ROWS = 4
"""How many rows of the table of points a suggested filter names at most."""

_USUAL = (
    "blocks.{i}.hook_resid_post",
    "blocks.{i}.attn.hook_z",
    "blocks.{i}.hook_mlp_out",
    "blocks.{i}.attn.hook_pattern",
)
"""What is asked for most."""

Planner = Callable[..., Plan]
"""Gives the plan of a run with other options."""


def size_of(size: int | str) -> int:
    """A number of bytes from a number, or from a text with a unit.

    Units: `kB`, `MB`, `GB` and `TB` are powers of 1000; `KiB`, `MiB`, ... are powers of 1024.

    Raises:
        InputError: it is neither, or it is negative.

    Example:
        >>> size_of("2GB"), size_of("1.5 MiB"), size_of(10)
        (2000000000, 1572864, 10)
    """
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is not None:
        base = 1024 if found[3] else 1000
        return int(float(found[1]) * base ** list(_UNITS).index(found[2].lower()))
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    raise InputError(
        f"max_bytes={size!r}: write a number of bytes, or a text such as '500MB' or '1.5GiB'."
    )


def require_room(
    planned: Planner, max_bytes: int | str, asked: Any, options: Mapping[str, Any]
) -> None:
    """Refuse a run that would keep too much on a device that computes.

    Args:
        planned: takes the options that are to be other than in the run.
        max_bytes: the most that it may keep on one device.
        asked: the filter of names.
        options: how activations are kept.

    Raises:
        InputError: with what fits.
    """
    most, plan = size_of(max_bytes), planned()
    if plan.held <= most:
        return
    fits = list(_fitting(planned, plan, most, asked, options))
    fewer = int((plan.batch or 0) * most // plan.held)
    none = "Neither a dtype, the last position nor leaving out points is enough"
    told = f"It fits with {'; '.join(fits)}" if fits else none
    batch = f" A batch of about {fewer} fits as it is." if fewer and plan.batch != fewer else ""
    raise InputError(
        f"This run would keep {bytes_as_text(plan.held)} on one device, and "
        f"max_bytes={max_bytes!r} allows {bytes_as_text(most)}. "
        f"{told}.{batch} model.plan(...) lists what takes how much."
    )


def _fitting(
    planned: Planner, plan: Plan, most: int, asked: Any, options: Mapping[str, Any]
) -> Iterator[str]:
    """The changes that make it fit, as code with the size."""
    sizes = [(one, _held(planned, one)) for one in _changes(plan, options)]
    both = {name: value for one, _ in sizes if "device" not in one for name, value in one.items()}
    if len(both) > 1 and all(size > most for _, size in sizes):
        sizes.append((both, _held(planned, both)))
    for one, size in sizes:
        if size <= most:
            code = ", ".join(f"{name}={value!r}" for name, value in one.items())
            yield f"{code} ({bytes_as_text(int(size))})"
    yield from _narrower(planned, plan, most, asked)


def _changes(plan: Plan, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Single changes of how activations are kept."""
    if options.get("device") is None and "cpu" not in plan.runs_on:
        yield {"device": "cpu"}
    wide = [one.dtype for one in plan.values.values() if one.dtype.is_floating_point]
    if options.get("dtype") is None and any(one.itemsize > 2 for one in wide):
        yield {"dtype": "bfloat16"}
    if options.get("pos_slice") is None:
        yield {"pos_slice": -1}


def _held(planned: Planner, changes: Mapping[str, Any]) -> float:
    try:
        return planned(**changes).held
    except LensbridgeError:  # such as a last token of a model that has none
        return float("inf")


def _narrower(planned: Planner, plan: Plan, most: int, asked: Any) -> Iterator[str]:
    """The first of some shorter filters that fits and selects nothing else than before."""
    for code, names_filter in _filters(plan, most, asked):
        try:
            found = planned(names_filter=names_filter)
        except LensbridgeError:
            continue
        if found.held <= most and found.values.keys() <= plan.values.keys():
            yield f"names_filter={code} ({bytes_as_text(found.held)})"
            return


def _filters(plan: Plan, most: int, asked: Any) -> Iterator[tuple[str, Any]]:
    """Filters as their user would write them, with what is written; the widest first."""
    rows = {row: _distinct_bytes(plan, names) for row, names in plan.by_row.items()}
    kept = sorted(rows, key=lambda row: rows[row])
    left_out: list[str] = []
    while kept and sum(rows[row] for row in kept) > most:
        left_out.append(kept.pop())
    if asked is None and kept and len(left_out) <= _MOST_ROWS:
        ends = tuple(row.rpartition("}")[2] for row in left_out)
        yield f"lambda name: not name.endswith({ends!r})", lambda name: not name.endswith(ends)
    if 0 < len(kept) <= _MOST_ROWS:
        yield from _of_rows(kept)
    known = [row for row in _USUAL if row in rows]
    for count in range(len(known), 0, -1):
        if sum(rows[row] for row in known[:count]) <= most:
            yield from _of_rows(known[:count])


def _of_rows(rows: list[str]) -> Iterator[tuple[str, list[str]]]:
    globs = sorted(re.sub(r"\{.*?\}", "*", row) for row in rows)
    yield repr(globs), globs


def _distinct_bytes(plan: Plan, names: list[str]) -> int:
    """About what points take; values that share memory count once."""
    return sum({plan.values[name].storage: plan.bytes[name] for name in names}.values())

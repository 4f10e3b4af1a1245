"""sweep_dataset: a patching sweep over many pairs of prompts, which can be resumed."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest.differences import differences
from lensbridge.hooked_model import HookedModel
from lensbridge.patching.sweeping import sweep
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.result import PatchingResult

FORMAT = "lensbridge.sweep_dataset/1"

Pair = tuple[Any, ...]
"""A clean and a corrupted input, and what else the metric of this pair needs."""


def sweep_dataset(
    model: HookedModel,
    pairs: Iterable[Sequence[Any]],
    cells: Any,
    metric: Callable[..., Any],
    out: str | PathLike[str] | None = None,
    *,
    told: Callable[[int, int], None] | None = None,
) -> PatchingResult:
    """Patch clean activations into corrupted runs, for many pairs of prompts.

    Args:
        model: the model, in eval mode.
        pairs: `(clean, corrupted)` inputs, or more entries, which go to the metric.
        cells: a function of `lensbridge.patching` (`get_act_patch_resid_pre`, ...), or a list of
            `(point, index)`, an index as for `model.sweep`.
        metric: maps logits to a number; with a second parameter it is also given the pair.
        out: a folder in which the values of each pair are written as they are measured. If it has
            some of the same sweep, these pairs are not run again. None: nothing is written.
        told: called after each pair with its number and how many there are.

    Returns:
        The values of all cells and pairs, the pairs along the last axis: `result.mean()`,
        `result.stderr()` and `result.bootstrap_ci()` are over pairs.

    Shapes: `[*axes, pair]`

    Raises:
        InputError: there are no pairs, pairs whose grids differ in shape, or the folder has another
            sweep.

    Example:
        >>> import lensbridge
        >>> from lensbridge.patching import get_act_patch_resid_pre
        >>> model = lensbridge.load("demo")
        >>> pairs = [("The Eiffel Tower is in the city of", "The Galata Tower is in the city of")]
        >>> paris = model.to_single_token(" Paris")
        >>> lensbridge.sweep_dataset(
        ...     model, pairs * 2, get_act_patch_resid_pre, lambda logits: logits[0, -1, paris]
        ... ).shape[-1]
        2
    """
    listed = [_checked(number, pair) for number, pair in enumerate(pairs)]
    if not listed:
        raise InputError("pairs is empty: there is nothing to sweep.")
    identity = _identity(model, listed, cells, metric)
    journal = Journal.open(None if out is None else Path(out), identity)
    found: list[Tensor] = []
    grid: Grid | None = None
    for number, pair in enumerate(listed):
        if number not in journal.values:
            result = _sweep(model, pair, cells, _of_pair(metric, pair))
            if result.partial:
                raise KeyboardInterrupt
            grid = result.grid
            journal.note(number, result.values)
        found.append(journal.values[number])
        _require_one_shape(found)
        if told is not None:
            told(number, len(listed))
    grid = grid or _sweep(model, listed[0], cells, _of_pair(metric, listed[0])).grid
    return PatchingResult(
        values=torch.stack(found, dim=-1), grid=grid, metric_names=["metric"], reduced=False
    )


def _checked(number: int, pair: Any) -> Pair:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) < 2:
        raise InputError(f"Pair {number} is {pair!r:.60}; a pair is (clean, corrupted, ...).")
    return tuple(pair)


def _of_pair(metric: Callable[..., Any], pair: Pair) -> Callable[[Tensor], Any]:
    needed = [
        one
        for one in inspect.signature(metric).parameters.values()
        if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    return (lambda logits: metric(logits, pair)) if len(needed) > 1 else metric


def _sweep(
    model: HookedModel, pair: Pair, cells: Any, metric: Callable[[Tensor], Any]
) -> PatchingResult:
    clean, corrupted = pair[:2]
    if callable(cells):
        _, cache = model.run_with_cache(clean, return_type=None)
        found = cells(model, corrupted, cache, metric, baseline=True)
        return found if isinstance(found, PatchingResult) else _as_result(found)
    names = [point for point, _ in cells]
    _, cache = model.run_with_cache(clean, names_filter=names, return_type=None)
    return sweep(model, corrupted, [(point, index, cache) for point, index in cells], metric)


def _as_result(values: Tensor) -> PatchingResult:
    rows = tuple((i,) for i in range(len(values)))
    return PatchingResult(values, Grid(("cell",), rows), ["metric"], True)


def _require_one_shape(found: Sequence[Tensor]) -> None:
    first, last = found[0].shape, found[-1].shape
    if last != first:
        raise InputError(
            f"Pair {len(found) - 1} has a grid of {list(last)} and pair 0 one of {list(first)}: "
            "pairs have prompts of equal length, or cells without positions."
        )


def _identity(
    model: HookedModel, pairs: Sequence[Pair], cells: Any, metric: Callable[..., Any]
) -> dict[str, Any]:
    def plain(value: Any) -> str:
        return str(value.tolist()) if isinstance(value, Tensor) else repr(value)

    every = sha256("\n".join(plain(one) for pair in pairs for one in pair).encode())
    return {
        "format": FORMAT,
        "model": {"name": model.cfg.model_name, "n_layers": model.cfg.n_layers},
        "pairs": {"count": len(pairs), "sha256": every.hexdigest()},
        "cells": _named(cells) if callable(cells) else sha256(repr(cells).encode()).hexdigest(),
        "metric": _named(metric),
    }


def _named(function: Any) -> str:
    """A name for a function; for a `functools.partial`, that of the function in it."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__qualname__", type(inner).__name__))


@dataclass
class Journal:
    """The values of pairs that were measured, in memory and in a folder.

    Args:
        path: the file, or None.
        values: number of the pair -> values.
    """

    path: Path | None
    values: dict[int, Tensor]

    @classmethod
    def open(cls, folder: Path | None, identity: Mapping[str, Any]) -> Journal:
        """What a folder has of a sweep; it is made if there is none.

        Raises:
            InputError: it has another sweep.
        """
        if folder is None:
            return cls(None, {})
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be made: {error}.") from error
        about, path = folder / "sweep.json", folder / "pairs.jsonl"
        if about.exists():
            told = differences(json.loads(about.read_text(encoding="utf-8")), identity)
            if told:
                raise InputError(f"The folder {folder} has another sweep: {told}.")
        else:
            about.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        return cls(path, dict(_read(path)) if path.exists() else {})

    def note(self, number: int, values: Tensor) -> None:
        """Keep the values of a pair, on the disk first."""
        plain = values.detach().cpu()
        if self.path is not None:
            line = {
                "pair": number,
                "dtype": str(plain.dtype).removeprefix("torch."),
                "shape": list(plain.shape),
                "values": plain.flatten().tolist(),
            }
            with self.path.open("ab") as file:
                file.write(b"\n" + json.dumps(line).encode())
                file.flush()
                os.fsync(file.fileno())
        self.values[number] = plain


def _read(path: Path) -> Iterable[tuple[int, Tensor]]:
    for raw in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(raw)
            dtype = getattr(torch, line["dtype"])
            yield int(line["pair"]), torch.tensor(line["values"], dtype=dtype).view(line["shape"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            continue  # blank, or cut off by a crash

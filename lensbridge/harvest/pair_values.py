"""The values of the pairs of a sweep, kept in a folder:

sweep.json     what the sweep is of
pairs.jsonl    a line for each pair that was measured
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest.callables import Recogniser
from lensbridge.harvest.differences import differences
from lensbridge.harvest.disk import finish
from lensbridge.harvest.identity import of_library, of_model, of_tokenizer
from lensbridge.harvest.journal import append, lines
from lensbridge.hooked_model import HookedModel

FORMAT = "lensbridge.sweep_dataset/2"

Pair = tuple[Any, ...]
"""A clean and a corrupted input, and what else the metric of this pair needs."""


def sweep_identity(
    model: HookedModel,
    pairs: Sequence[Pair],
    cells: Any,
    metric: Callable[..., Any],
    identity: str | None,
) -> dict[str, Any]:
    """Everything that the values depend on, as JSON.

    Args:
        model: the model.
        pairs: the pairs.
        cells: a function that sweeps, or a list of cells.
        metric: the metric.
        identity: what stands for the metric, or None.

    Raises:
        InputError: a pair, the cells or the metric has what cannot be recognised.
    """
    listed = [Recogniser(f"Pair {i}").of(list(pair)) for i, pair in enumerate(pairs)]
    swept = Recogniser("cells").of(cells)
    return {
        "format": FORMAT,
        "model": of_model(model),
        "tokenizer": of_tokenizer(model.tokens.tokenizer),
        "pairs": {"count": len(pairs), "sha256": _hash(listed)},
        "cells": swept if callable(cells) else _hash(swept),
        "metric": Recogniser("metric").of(metric) if identity is None else identity,
        "library": of_library(),
    }


def _hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass
class PairValues:
    """The values of pairs that were measured, in memory and in a folder.

    Args:
        path: the file, or None.
        values: number of the pair -> values.
    """

    path: Path | None = None
    values: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> PairValues:
        """What a folder has of a sweep; it is made if there is none.

        Raises:
            InputError: it has another sweep, or cannot be made.
        """
        about, path = folder / "sweep.json", folder / "pairs.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be made: {error}.") from error
        if about.exists():
            _require_same(about, identity)
        else:
            _write(about, identity)
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
            append(self.path, line)
        self.values[number] = plain


def _require_same(about: Path, identity: Mapping[str, Any]) -> None:
    try:
        there = json.loads(about.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{about} is not the file of a sweep: {error}.") from error
    told = differences(there, identity)
    if told:
        raise InputError(
            f"The folder {about.parent} has another sweep: {told}. Choose another folder, or the "
            "same model, pairs, cells and metric."
        )


def _write(about: Path, identity: Mapping[str, Any]) -> None:
    new = about.with_name(f".{about.name}@{os.getpid()}.new")
    new.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    finish(new, about)


def _read(path: Path) -> Iterator[tuple[int, Tensor]]:
    for line in lines(path):
        try:
            dtype = getattr(torch, line["dtype"])
            yield int(line["pair"]), torch.tensor(line["values"], dtype=dtype).view(line["shape"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            continue  # cut off by a crash, and yet JSON

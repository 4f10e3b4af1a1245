"""Harvests as JSON, for the command line and for other machines."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

from lensbridge.errors import InputError, suggest
from lensbridge.harvest.reductions import Last, Mean, Norm, Reduction, TopK
from lensbridge.harvest.spec import FIELDS, Keep, Rows, Spec


def to_json(spec: Spec) -> str:
    """A harvest as JSON; see `Harvest.to_json`."""
    found = {
        "model": _named("model", spec.model),
        "data": _data(spec.data),
        "points": [list(one) if isinstance(one, tuple) else one for one in spec.points],
        "layers": None if spec.layers is None else list(spec.layers),
        "rows": vars(spec.rows),
        "keep": {**vars(spec.keep), "positions": _positions(spec.keep.positions)},
        "reduce": _reduction(spec.reduce),
        "dtype": None if spec.dtype is None else str(spec.dtype).removeprefix("torch."),
        "batch": spec.batch,
        "shard_tokens": spec.shard_tokens,
        "field": spec.field,
        "max_tokens": spec.max_tokens,
    }
    return json.dumps(found, indent=2)


def _named(what: str, given: Any) -> str:
    if isinstance(given, (str, PathLike)):
        return str(given)
    raise InputError(
        f"{what} is a {type(given).__name__}; JSON takes a name or a path. Save it to a "
        "folder or a file, and name that."
    )


def _data(given: Any) -> str | list[str]:
    if isinstance(given, list) and all(isinstance(one, (str, PathLike)) for one in given):
        return [str(one) for one in given]
    return _named("data", given)


def _positions(given: Any) -> Any:
    if isinstance(given, slice):
        return {"start": given.start, "stop": given.stop, "step": given.step}
    return None if given is None else [int(one) for one in given]


def _reduction(given: str | Reduction | None) -> Any:
    if given is None:
        return None
    if isinstance(given, (Mean, Last, Norm, TopK)):
        return given.describe()
    raise InputError(
        f"{type(given).__name__} holds tensors, which JSON does not: run this harvest from Python."
    )


def from_json(text: str) -> dict[str, Any]:
    """The arguments of a harvest that was written as JSON; see `Harvest.from_json`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"The harvest is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InputError("The JSON of a harvest is an object with 'model', 'data' and 'points'.")
    _require(found, FIELDS, "a harvest")
    for name in ("model", "data", "points"):
        if name not in found:
            raise InputError(f"The JSON of a harvest needs {name!r}; it has {', '.join(found)}.")
    return {
        **found,
        "points": _points(found["points"]),
        "rows": Rows(**_part(found, "rows", Rows)),
        "keep": _keep(_part(found, "keep", Keep)),
        "reduce": _reduced(found.get("reduce")),
    }


def _require(found: dict[str, Any], known: Any, what: str) -> None:
    unknown = [one for one in found if one not in known]
    if unknown:
        raise InputError(
            f"{what} has no field {unknown[0]!r}; its fields are {', '.join(known)}."
            f"{suggest(unknown[0], known)}"
        )


def _part(found: dict[str, Any], name: str, kind: type) -> dict[str, Any]:
    given = found.get(name) or {}
    if not isinstance(given, dict):
        raise InputError(f"{name} of a harvest is an object, not {given!r}.")
    _require(given, tuple(kind.__dataclass_fields__), f"{name} of a harvest")  # type: ignore[attr-defined]
    return given


def _keep(given: dict[str, Any]) -> Keep:
    positions = given.get("positions")
    if isinstance(positions, dict):
        _require(positions, ("start", "stop", "step"), "positions of a harvest")
        positions = slice(positions.get("start"), positions.get("stop"), positions.get("step"))
    return Keep(**{**given, "positions": positions})


def _points(given: Any) -> list[Any]:
    listed = [given] if isinstance(given, str) else list(given)
    return [tuple(one) if isinstance(one, list) else one for one in listed]


def _reduced(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    if given.get("reduce") == "top_k":
        return TopK(given["k"], bool(given.get("by_magnitude", False)))
    return given.get("reduce")

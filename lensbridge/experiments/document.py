"""Experiments in files: JSON, with tensors in it or in a separate safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lensbridge.errors import InputError, LensbridgeError, suggest
from lensbridge.experiments.fields import NORMAL
from lensbridge.interventions.document import Store, packed, read, unpacked, written
from lensbridge.interventions.intervention import Intervention
from lensbridge.metrics import METRICS, Metric

FORMAT = "lensbridge.experiment/1"


def to_json(experiment: Any, tensors: str | Path | None = None) -> str:
    """See `Experiment.to_json`."""
    store = Store(None if tensors is None else {})
    values = {name: vars(experiment)[name] for name in NORMAL}
    listed = {
        name: _written(name, value, store) for name, value in values.items() if value is not None
    }
    if tensors is not None:
        save_file(store.held or {}, tensors, metadata={"format": FORMAT})
    return json.dumps({"format": FORMAT, **listed}, allow_nan=False)


def from_json(text: str, tensors: str | Path | None = None) -> dict[str, Any]:
    """The arguments of an experiment; see `Experiment.from_json`."""
    try:
        given = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"This text is not JSON: {error}.") from error
    if not isinstance(given, dict) or given.pop("format", None) != FORMAT:
        raise InputError(f"This text is no experiment: its format is not {FORMAT!r}.")
    for name in given:
        if name not in NORMAL:
            raise InputError(f"An experiment has no {name!r}.{suggest(name, NORMAL)}")
    if "inputs" not in given:
        raise InputError("The experiment has no inputs.")
    store = Store(None if tensors is None else load_file(tensors))
    return {name: _read(name, value, store) for name, value in given.items()}


def _written(name: str, value: Any, store: Store) -> Any:
    if name == "inputs":
        return _written_inputs(value, store)
    if name == "interventions":
        return [written(one, store) for one in value]
    if name == "sweep":
        if isinstance(value, Mapping):
            return {key: _written_cell(one, store) for key, one in value.items()}
        return [_written_cell(one, store) for one in value]
    if name == "metric":
        if isinstance(value, Metric):
            return written_metric(value, store)
        return {key: written_metric(one, store) for key, one in value.items()}
    if name == "generate":
        return value
    return packed(value, store)


def _written_inputs(value: Any, store: Store) -> Any:
    if isinstance(value, Tensor):
        return store.put(value) if value.is_floating_point() else value.tolist()
    if isinstance(value, Mapping):
        return {key: _written_inputs(one, store) for key, one in value.items()}
    return value


def _written_cell(cell: Any, store: Store) -> Any:
    if isinstance(cell, Intervention):
        return written(cell, store)
    return [written(one, store) for one in cell]


def written_metric(metric: Metric, store: Store) -> dict[str, Any]:
    """A metric as its kind and the arguments that are not the default."""
    values = {one.name: (vars(metric)[one.name], one.default) for one in fields(metric)}
    said = {
        name: packed(value, store)
        for name, (value, default) in values.items()
        if isinstance(value, Tensor) or value != default
    }
    return {"kind": type(metric).__name__, **said}


def _read(name: str, value: Any, store: Store) -> Any:
    """A field as `Experiment` takes it.

    Raises:
        InputError: the JSON has something else there.
    """
    try:
        return _understood(name, value, store)
    except LensbridgeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"The {name} of the experiment cannot be read ({type(error).__name__}: {error})."
        ) from error


def _understood(name: str, value: Any, store: Store) -> Any:
    if value is None or name in ("generate", "returns", "prepend_bos"):
        return value
    if name == "inputs":
        return _read_inputs(value, store)
    if name == "interventions":
        return [read(one, store) for one in value]
    if name == "sweep":
        if isinstance(value, dict):
            return {key: _read_cell(one, store) for key, one in value.items()}
        return [_read_cell(one, store) for one in value]
    if name == "metric":
        if isinstance(value, str) or isinstance(value.get("kind"), str):
            return _read_one_metric(value, store)
        return {key: _read_one_metric(one, store) for key, one in value.items()}
    found = unpacked(value, store)
    return list(found) if name == "pos_slice" and isinstance(found, tuple) else found


def _read_inputs(value: Any, store: Store) -> Any:
    if not isinstance(value, dict) or "role" in value:
        return value
    if set(value) == {"tensor"}:
        return store.get(value["tensor"])
    return {key: _read_inputs(one, store) for key, one in value.items()}


def _read_cell(given: Any, store: Store) -> Any:
    if isinstance(given, list):
        return [read(one, store) for one in given]
    return read(given, store)


def _read_one_metric(given: Any, store: Store) -> Any:
    return given if isinstance(given, str) else read_metric(given, store)


def read_metric(given: dict[str, Any], store: Store) -> Metric:
    """A metric from its kind and arguments.

    Raises:
        InputError: there is no such kind, or it takes other arguments.
    """
    values = {name: unpacked(value, store) for name, value in given.items() if name != "kind"}
    kind = METRICS.get(given.get("kind", ""))
    if kind is None:
        raise InputError(
            f"There is no metric {given.get('kind')!r}; there are {', '.join(METRICS)}."
        )
    unknown = set(values) - {one.name for one in fields(kind)}
    if unknown:
        raise InputError(f"{kind.__name__} has no {', '.join(sorted(unknown))}.")
    return kind(**values)

"""Interventions in files: JSON, with tensors in it or in a separate safetensors file."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError, suggest
from lensbridge.interventions.apply import Apply
from lensbridge.interventions.erasure import Erase
from lensbridge.interventions.exchange import Mean, Resample, Swap
from lensbridge.interventions.functions import function_of, name_of
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.kinds import Add, Noise, Project, Replace, Scale, Steer, Zero
from lensbridge.interventions.source import StoredSource
from lensbridge.interventions.steered import GatedSteer, NormPreservingSteer
from lensbridge.interventions.when import ALWAYS, When
from lensbridge.tensors.position_forms import TokenMask

FORMAT = "lensbridge.interventions/1"
KINDS: dict[str, type[Intervention]] = {
    one.__name__: one
    for one in (
        *(Replace, Add, Scale, Zero, Mean, Resample, Project, Steer, Swap, Noise),
        *(Apply, NormPreservingSteer, GatedSteer, Erase),
    )
}


def to_json(
    interventions: "Intervention | Iterable[Intervention]", tensors: str | Path | None = None
) -> str:
    """Interventions as JSON.

    Args:
        interventions: one or several. If a source is a cache, its activations at the site are kept.
        tensors: a safetensors file to write tensors to; None: they go into the text, as base64.

    Raises:
        InputError: a site is a function, or a function has no name (`register_function`).

    Example:
        >>> from lensbridge.interventions import Zero, from_json, to_json
        >>> text = to_json(Zero(("z", 1), heads=[0, 2], when="decode"))
        >>> from_json(text)[0].heads
        (0, 2)
    """
    several = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    store = Store(None if tensors is None else {})
    listed = [written(one, store) for one in several]
    if tensors is not None:
        save_file(store.held or {}, tensors, metadata={"format": FORMAT})
    return json.dumps({"format": FORMAT, "interventions": listed}, allow_nan=False)


def from_json(text: str, tensors: str | Path | None = None) -> list[Intervention]:
    """Interventions from what `to_json` wrote.

    Args:
        text: the JSON.
        tensors: the safetensors file, if the tensors are in one.

    Raises:
        InputError: the text was not written by `to_json`.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"This text is not JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"This text is not a list of interventions: its format is not {FORMAT!r}.")
    store = Store(None if tensors is None else load_file(tensors))
    return [read(one, store) for one in document["interventions"]]


@dataclass
class Store:
    """Where tensors are kept: in `held`, by key; None: in the text."""

    held: dict[str, Tensor] | None = field(default=None)

    def put(self, tensor: Tensor) -> dict[str, Any]:
        own = tensor.detach().cpu().contiguous()
        if self.held is not None:
            key = str(len(self.held))
            self.held[key] = own.clone()
            return {"tensor": key}
        data = own.reshape(-1).view(torch.uint8).numpy().tobytes()
        return {
            "tensor": {
                "dtype": str(own.dtype).removeprefix("torch."),
                "shape": list(own.shape),
                "base64": base64.b64encode(data).decode(),
            }
        }

    def get(self, given: Any) -> Tensor:
        if isinstance(given, str):
            if self.held is None or given not in self.held:
                raise InputError("The tensors are in another file: pass it as tensors=...")
            return self.held[given]
        kinds = {
            str(one).removeprefix("torch."): one
            for one in vars(torch).values()
            if isinstance(one, torch.dtype)
        }
        data = bytearray(base64.b64decode(given["base64"]))
        flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0).byte()
        return flat.view(kinds[given["dtype"]]).reshape(given["shape"])


def written(one: Intervention, store: Store) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": type(one).__name__}
    for member in fields(one):
        value = vars(one)[member.name]
        if member.name == "source" and isinstance(value, ActivationCache):
            tokens = value.tokens if one.left_out else None
            value = replace(StoredSource.of(value, one.site), tokens=tokens)
        if value is not None and value is not ALWAYS and value != member.default:
            values[member.name] = packed(value, store)
    return values


def packed(value: Any, store: Store) -> Any:
    if isinstance(value, Tensor):
        return store.put(value)
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, TokenMask):
        return {"token_mask": [value.width, *map(list, value.rows)]}
    if isinstance(value, When):
        return {"when": [value.phase, packed(value.steps, store)]}
    if isinstance(value, StoredSource):
        return _packed_source(value, store)
    if isinstance(value, Mapping):
        return {"tensors": {_name(key): store.put(tensor) for key, tensor in value.items()}}
    if isinstance(value, float) and not isfinite(value):
        return {"number": str(value)}
    if isinstance(value, list | tuple | range):
        return [packed(one, store) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if callable(value) and name_of(value) is not None:
        return {"function": name_of(value)}
    raise InputError(
        f"{value!r} cannot be written to JSON. Name the points instead; give a function that Apply "
        'calls a name: @register_function("...").'
    )


def _packed_source(source: StoredSource, store: Store) -> dict[str, Any]:
    """Its tensors and what is known of its run, as the arguments of `StoredSource`."""
    known: list[Any] = [source.attention_mask, source.tokens, source.decoder_attention_mask]
    while known and known[-1] is None:
        known.pop()
    if not known:
        return packed(dict(source), store)
    return {"masked": [packed(one, store) for one in (dict(source), *known)]}


def _name(key: Any) -> str:
    """A key of a mapping as text; a short name, which is a tuple, is written as JSON."""
    return key if isinstance(key, str) else json.dumps(list(key))


def read(given: dict[str, Any], store: Store) -> Intervention:
    values = {name: unpacked(value, store) for name, value in given.items() if name != "kind"}
    kind = KINDS.get(given.get("kind", ""))
    if kind is None:
        raise InputError(
            f"There is no kind of intervention {given.get('kind')!r}."
            f"{suggest(str(given.get('kind')), KINDS)}"
        )
    unknown = set(values) - {one.name for one in fields(kind)}
    if unknown:
        raise InputError(f"{kind.__name__} has no {', '.join(sorted(unknown))}.")
    return kind(**values)


def unpacked(value: Any, store: Store) -> Any:
    if isinstance(value, list):
        return tuple(unpacked(one, store) for one in value)
    if not isinstance(value, dict):
        return value
    ((sort, inside),) = value.items()
    if sort == "tensor":
        return store.get(inside)
    if sort == "slice":
        return slice(*inside)
    if sort == "when":
        return When(inside[0], unpacked(inside[1], store))
    if sort == "tensors":
        return {_key(key): store.get(one["tensor"]) for key, one in inside.items()}
    if sort == "masked":
        return StoredSource(*(unpacked(one, store) for one in inside))
    if sort == "token_mask":
        return TokenMask(tuple(map(tuple, inside[1:])), inside[0])
    if sort == "function":
        return function_of(inside)
    if sort == "number":
        return float(inside)
    raise InputError(f"{sort!r} is not a value of an intervention.")


def _key(text: str) -> Any:
    return tuple(json.loads(text)) if text.startswith("[") else text

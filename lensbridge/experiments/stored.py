"""Results of experiments as safetensors: a file, or bytes that are sent from a server."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.files import parts_of, rebuilt
from lensbridge.cache.owner import CachedModel
from lensbridge.errors import InputError
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.result import PatchingResult

FORMAT = "lensbridge.result/1"
_LENGTH = 8
"""Bytes at the start of safetensors that say how long the header is."""


@dataclass
class Writer:
    """Collects tensors under keys; what shares memory is copied, as safetensors asks."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def put(self, key: str, tensor: Tensor) -> str:
        """Keep a tensor under a key."""
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in self._seen:
            own = own.clone()
        self._seen.add(own.untyped_storage().data_ptr())
        self.tensors[key] = own
        return key

    def written(self, key: str, value: Any) -> Any:
        """A value as JSON; its tensors are put under keys that begin with `key`."""
        if isinstance(value, Tensor):
            return {"tensor": self.put(key, value)}
        if isinstance(value, ActivationCache):
            tensors, about = parts_of(value)
            for name, tensor in tensors.items():
                self.put(f"{key}/{name}", tensor)
            return {"cache": about, "at": key}
        if isinstance(value, PatchingResult | Grid):
            parts = {one.name: getattr(value, one.name) for one in fields(value)}
            return {_KIND[type(value)]: self.written(key, parts)}
        if isinstance(value, PositionLabels):
            return {"labels": value.texts}
        if isinstance(value, Mapping):
            listed = enumerate(value.items())
            return {"named": [[name, self.written(f"{key}/{i}", one)] for i, (name, one) in listed]}
        if isinstance(value, list | tuple):
            several = [self.written(f"{key}/{i}", one) for i, one in enumerate(value)]
            return {"tuple": several} if isinstance(value, tuple) else several
        return value


_KIND: dict[type, str] = {PatchingResult: "sweep", Grid: "grid"}


@dataclass
class Reader:
    """Makes values again of what a `Writer` wrote.

    Args:
        tensors: by key.
        model: the model that was run, for caches; None: a cache knows the names only.
    """

    tensors: Mapping[str, Tensor]
    model: CachedModel | None

    def read(self, given: Any) -> Any:
        """A value from what `Writer.written` gave."""
        if isinstance(given, list):
            return [self.read(one) for one in given]
        if not isinstance(given, dict):
            return given
        if "cache" in given:
            return self._cache(given["cache"], given["at"])
        ((kind, inside),) = given.items()
        return self._readers[kind](inside)

    @property
    def _readers(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "tensor": lambda key: self.tensors[key],
            "tuple": lambda parts: tuple(self.read(one) for one in parts),
            "named": lambda pairs: {name: self.read(one) for name, one in pairs},
            "labels": lambda texts: PositionLabels.named(tuple(texts)),
            "grid": lambda inside: Grid(**self.read(inside)),
            "sweep": lambda inside: PatchingResult(**self.read(inside)),
        }

    def _cache(self, about: Mapping[str, Any], key: str) -> ActivationCache:
        front = f"{key}/"
        own = {k.removeprefix(front): t for k, t in self.tensors.items() if k.startswith(front)}
        return ActivationCache(**rebuilt(own, about, self.model))


def _parts(result: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    writer = Writer()
    told = {one.name: getattr(result, one.name) for one in fields(result)}
    about = {name: writer.written(name, value) for name, value in told.items()}
    return writer.tensors, {"format": FORMAT, "result": json.dumps(about)}


def save(result: Any, path: str | Path) -> None:
    """See `ExperimentResult.save`."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"{path} is a folder, or in a folder that does not exist. Create it first."
        )
    tensors, metadata = _parts(result)
    save_file(tensors, path, metadata=metadata)


def to_bytes(result: Any) -> bytes:
    """See `ExperimentResult.to_bytes`."""
    tensors, metadata = _parts(result)
    return bytes(save_bytes(tensors, metadata=metadata))


def load(path: str | Path, model: CachedModel | None) -> dict[str, Any]:
    """The arguments of a result; see `ExperimentResult.load`."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as a safetensors file ({error}).") from error
    return _rebuilt(metadata, tensors, model, str(path))


def from_bytes(data: bytes, model: CachedModel | None) -> dict[str, Any]:
    """The arguments of a result; see `ExperimentResult.from_bytes`."""
    try:
        tensors = load_bytes(data)
        length = int.from_bytes(data[:_LENGTH], "little")
        metadata = json.loads(data[_LENGTH : _LENGTH + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"These bytes cannot be read as safetensors ({error}).") from error
    return _rebuilt(metadata, tensors, model, "These bytes")


def _rebuilt(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], model: Any, where: str
) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{where}: this is no result of an experiment. Its format is "
            f"{metadata.get('format')!r}, and ExperimentResult.save writes {FORMAT!r}."
        )
    reader = Reader(tensors, model)
    try:
        about = json.loads(metadata["result"])
        return {name: reader.read(value) for name, value in about.items()}
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: the header is incomplete ({type(error).__name__}: {error})."
        ) from error

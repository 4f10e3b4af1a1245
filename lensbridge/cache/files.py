"""Caches in safetensors files, with the facts about the run in the header.

Each tensor is written once, even if several names share it. It is read lazily: the file is mapped
into memory, so reading one activation of a large cache does not read the others.
"""

import json
from collections.abc import ItemsView, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lensbridge.cache.capture import Place, place_of
from lensbridge.cache.owner import CachedModel
from lensbridge.errors import InputError
from lensbridge.points.point_names import PointNames

FORMAT = "lensbridge.ActivationCache/1"
_INPUT = {name: f"input.{name}" for name in ("tokens", "attention_mask", "decoder_attention_mask")}
"""Where the tensors of the input are."""


class Kept(Protocol):
    """The parts of a cache that are written."""

    vocabulary: PointNames
    model: CachedModel | None
    tokens: Tensor | None
    attention_mask: Tensor | None
    decoder_attention_mask: Tensor | None
    prepend_bos: bool | None
    has_batch_dim: bool
    processed: tuple[str, ...]

    def items(self) -> ItemsView[str, Tensor]:
        """Activations by canonical name."""


def save(cache: Kept, path: str | Path) -> None:
    """Write a cache.

    Raises:
        InputError: the folder does not exist, or the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder. Pass the path of a file in it.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} for {path.name}. Create it first.")
    tensors, about = parts_of(cache)
    save_file(tensors, path, metadata={"format": FORMAT, "cache": json.dumps(about)})


def parts_of(cache: Kept) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is written of a cache: tensors by name, and facts for a header in JSON."""
    tensors, names = _once(cache)
    for name, key in _INPUT.items():
        given = getattr(cache, name)
        if given is not None:
            tensors[key] = given.contiguous()
    known = cache.vocabulary
    about: dict[str, Any] = {
        "names": names,
        "prepend_bos": cache.prepend_bos,
        "has_batch_dim": cache.has_batch_dim,
        "processed": cache.processed,
        "model": _described(cache.model),
        "vocabulary": {
            "index": [name for name in known.names if name in names or ".experts." not in name],
            "absent": known.absent,
            "depths": known.depths,
            "gated": known.gated,
            "main_names": sorted(known.main_names),
        },
    }
    return tensors, about


def _once(cache: Kept) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor under the first of its names, and for each name that first one."""
    first: dict[Place, str] = {}
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for name, tensor in cache.items():
        names[name] = first.setdefault(place_of(tensor), name)
        if names[name] == name:
            own = tensor.detach().contiguous()  # heads that are views of one projection
            whole = own.untyped_storage().nbytes() == own.nbytes
            tensors[name] = own if whole else own.clone()
    return tensors, names


def _described(model: CachedModel | None) -> dict[str, Any] | None:
    if model is None:
        return None
    cfg = model.cfg
    return {
        "name": cfg.model_name,
        "class": cfg.original_architecture,
        "architecture": cfg.architecture,
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
    }


def load(path: str | Path, model: CachedModel | None = None) -> dict[str, Any]:
    """The arguments with which the cache is made again; tensors are read only when they are used.

    Args:
        path: a file that `save` wrote.
        model: the model that was run, for methods that need weights.

    Raises:
        InputError: the file does not exist, is no cache or is incomplete; or its model differs.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(
                    f"{path} is a safetensors file, but not an ActivationCache: its format is "
                    f"{metadata.get('format')!r}, and ActivationCache.save writes {FORMAT!r}."
                )
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as a safetensors file ({error}). It is incomplete, or it has "
            "another format. Write it again with ActivationCache.save."
        ) from error
    try:
        return rebuilt(stored, json.loads(metadata["cache"]), model)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is marked as an ActivationCache, but its header is incomplete "
            f"({type(error).__name__}: {error}). Write it again with ActivationCache.save."
        ) from error


def rebuilt(
    stored: Mapping[str, Tensor], about: Mapping[str, Any], model: CachedModel | None
) -> dict[str, Any]:
    """The arguments with which a cache is made again, from what `parts_of` gave.

    Raises:
        InputError: the cache is of another model.
    """
    if model is not None:
        _require_same(about["model"], _described(model))
    names: dict[str, str] = about["names"]
    known = about["vocabulary"]
    read = PointNames(
        index=tuple(known["index"]),
        absent=known["absent"],
        depths=known["depths"],
        gated=known["gated"],
        main_names=frozenset(known["main_names"]),
    )
    return {
        "cache_dict": {name: stored[where] for name, where in names.items()},
        "names": read if model is None else model.vocabulary,
        "model": model,
        **{name: stored.get(key) for name, key in _INPUT.items()},
        "prepend_bos": about["prepend_bos"],
        "has_batch_dim": about["has_batch_dim"],
        "processed": tuple(about.get("processed", ())),
    }


def _require_same(saved: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> None:
    if saved is None or given is None:
        return
    differing = [key for key in saved if key != "name" and saved[key] != given[key]]
    if differing:
        raise InputError(
            "This cache is of another model: "
            + ", ".join(f"{key} {saved[key]!r}, not {given[key]!r}" for key in differing)
            + ". Pass the model that was run, or no model."
        )

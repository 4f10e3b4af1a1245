"""Files of steering vectors: GGUF control vectors, and the vectors of steering-vectors."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.interventions.kinds import Steer
from lensbridge.points.names import layer_of, template

_STREAM = "blocks.{i}.hook_resid_post"
_LAYER_TYPES = {
    "decoder_block": _STREAM,
    "self_attn": "blocks.{i}.hook_attn_out",
    "mlp": "blocks.{i}.hook_mlp_out",
}
"""What steering-vectors calls the points that it knows."""

_ARCH = "controlvector"


def write_vectors(steers: Sequence[Steer], model_type: str, path: Path) -> None:
    """See `SteeringVectors.save`."""
    _require_folder(path)
    if path.suffix == ".gguf":
        _write_gguf(_by_layer(steers, [_STREAM], "A GGUF control vector")[1], model_type, path)
    elif path.suffix == ".pt":
        row, vectors = _by_layer(steers, list(_LAYER_TYPES.values()), "A SteeringVector")
        kind = next(name for name, one in _LAYER_TYPES.items() if one == row)
        torch.save({"layer_activations": vectors, "layer_type": kind}, path)
    else:
        raise InputError(_suffix(path))


def read_vectors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Vectors by the name of their point, and the type of model that they are of."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    if path.suffix == ".gguf":
        return _read_gguf(path)
    if path.suffix == ".pt":
        return _read_pt(path), ""
    raise InputError(_suffix(path))


def _suffix(path: Path) -> str:
    return (
        f"{path.name} ends neither with .gguf (a control vector of repeng and llama.cpp) nor with "
        ".pt (steering-vectors). lensbridge.interventions.to_json writes everything."
    )


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} for {path.name}. Create it first.")


def _by_layer(
    steers: Sequence[Steer], rows: Sequence[str], what: str
) -> tuple[str, dict[int, Tensor]]:
    """The vectors by layer, times their strength, and the one row of points that they are of."""
    found = {template(str(one.site)) for one in steers}
    row = next(iter(found))
    if len(found) > 1 or row not in rows:
        raise InputError(
            f"{what} has one vector for each layer at {' or '.join(rows)}; these are of "
            f"{', '.join(sorted(found))}."
        )
    vectors: dict[int, Tensor] = {}
    for one in steers:
        _require_plain(one, what)
        layer = layer_of(str(one.site))
        assert layer is not None
        if layer in vectors:
            raise InputError(f"{what} has one vector for each layer, and layer {layer} has two.")
        vectors[layer] = (one.vector * one.strength).detach().float().cpu().contiguous()
    return row, vectors


def _require_plain(one: Steer, what: str) -> None:
    """Refuse what a file of vectors alone would lose."""
    kept = ("site", "vector", "strength")
    for member in fields(one):
        if member.name not in kept and vars(one)[member.name] != member.default:
            raise InputError(
                f"{what} keeps vectors only, and this one has {member.name}="
                f"{vars(one)[member.name]!r}. Save {one.site} without it, or with to_json."
            )
    if one.vector.ndim != 1:
        raise InputError(f"{what} has vectors [d_model]; {one.site} has {list(one.vector.shape)}.")


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            "GGUF control vectors need gguf: pip install 'lensbridge[gguf]'."
        ) from error
    return gguf


def _write_gguf(vectors: dict[int, Tensor], model_type: str, path: Path) -> None:
    writer = _gguf().GGUFWriter(path, _ARCH)
    writer.add_string(f"{_ARCH}.model_hint", model_type)
    writer.add_uint32(f"{_ARCH}.layer_count", len(vectors))
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(path: Path) -> tuple[dict[str, Tensor], str]:
    library = _gguf()
    try:
        reader = library.GGUFReader(path)
        kind, hint = (_text(reader, key) for key in ("general.architecture", f"{_ARCH}.model_hint"))
        named = {one.name: one for one in reader.tensors if one.name.startswith("direction.")}
        vectors = {int(name.removeprefix("direction.")): one for name, one in named.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(f"{path} cannot be read as a control vector: {error}") from error
    if kind != _ARCH or not vectors:
        raise InputError(
            f"{path} is no control vector: its architecture is {kind!r}, and it has "
            f"{len(vectors)} directions."
        )
    values = library.quants.dequantize
    found = {
        _STREAM.replace("{i}", str(layer)): torch.tensor(
            values(vectors[layer].data, vectors[layer].tensor_type), dtype=torch.float32
        )
        for layer in sorted(vectors)
    }
    return found, hint


def _text(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    return "" if field is None else bytes(field.parts[-1]).decode("utf-8", "replace")


class _SteeringVector:
    """What a pickled `SteeringVector` becomes here, so that its package is not needed."""


def _read_pt(path: Path) -> dict[str, Tensor]:
    where = "steering_vectors.steering_vector.SteeringVector"
    known: Any = getattr(torch.serialization, "safe_globals", lambda given: nullcontext())
    try:
        with known([(_SteeringVector, where)]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle fails in its reader in many ways
        raise InputError(f"{path} cannot be read as steering vectors: {error}") from error
    given = vars(found) if isinstance(found, _SteeringVector) else found
    vectors = given.get("layer_activations") if isinstance(given, dict) else None
    row = _LAYER_TYPES.get(given.get("layer_type", "decoder_block")) if vectors else None
    if not isinstance(vectors, dict) or row is None:
        raise InputError(
            f"{path} has no layer_activations of {', '.join(_LAYER_TYPES)}: it is not written by "
            "steering-vectors or by save."
        )
    return {row.replace("{i}", str(layer)): vectors[layer] for layer in sorted(vectors)}

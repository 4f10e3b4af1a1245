"""A GGUF file's model kept in safetensors beside it, and opened from there the next time."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from shutil import disk_usage, rmtree
from tempfile import TemporaryDirectory
from typing import Any

from lensbridge.errors import LoadError
from lensbridge.loading.gguf.naming import WHERE, file_of, parts_of
from lensbridge.loading.gguf.opening import check_installed, gguf_tokenizer

FINGERPRINT = "converted-from.json"
"""The file of a converted folder that says what it was made from."""
_HEAD_BYTES = 1 << 20
_OF_THE_COPY = (
    "device_map",
    "max_memory",
    "offload_folder",
    "offload_buffers",
    "attn_implementation",
    "quantization_config",
    "tp_plan",
    "distributed_config",
)
"""Options for the copy when it is opened, not for making it."""


def converted(
    source: str,
    options: dict[str, Any],
    keep: "bool | str | os.PathLike[str]",
    read: Callable[[str, dict[str, Any]], Any],
) -> tuple[str, dict[str, Any]]:
    """The folder with the converted model, made unless it is there, and the options to open it.

    Args:
        source: a folder or a hub id.
        options: of `from_pretrained`, with `gguf_file`.
        keep: the folder to write; True: one beside the file.
        read: how a model is read from a file, with the same first two arguments.

    Raises:
        LoadError: no file was named, the folder holds something else, or the file cannot be read.
    """
    if options.get("gguf_file") is None:
        raise LoadError("save_converted is for GGUF files: name one, load('model.gguf', ...).")
    check_installed()
    path = file_of(source, options)
    folder = _folder(source, path, keep)
    wanted = _fingerprint(path, options.get("dtype"))
    if _found(folder) != wanted:
        _convert(source, options, folder, wanted, read)
    gone = ("gguf_file", "subfolder", "revision")
    return str(folder), {key: value for key, value in options.items() if key not in gone}


def _folder(source: str, path: Path, keep: Any) -> Path:
    if keep is not True:
        return Path(keep).expanduser()
    if not Path(source).is_dir():
        raise LoadError(
            f"{path.name!r} lies in the cache of the hub, where nothing else may be written. Pass "
            "a folder: save_converted='...'."
        )
    return path.with_name(f"{path.name}.converted")


def _fingerprint(path: Path, dtype: Any) -> dict[str, Any]:
    """What the copy depends on: the parts of the file, the dtype, and who reads it."""
    parts = []
    for name in parts_of(path.name):
        part = path.with_name(name)
        with part.open("rb") as file:
            digest = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
        at = part.stat()
        parts.append([name, at.st_size, at.st_mtime_ns, digest])
    readers = {name: version(name) for name in ("transformers", "gguf")}
    return {"parts": parts, "dtype": str(dtype), **readers}


def _found(folder: Path) -> Any:
    """The fingerprint in a folder; None if there is no folder.

    Raises:
        LoadError: the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        return json.loads((folder / FINGERPRINT).read_text())
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{str(folder)!r} is there and holds no converted model, so nothing is written to it. "
            "Pass another folder as save_converted."
        ) from error


def _convert(
    source: str,
    options: dict[str, Any],
    folder: Path,
    wanted: dict[str, Any],
    read: Callable[[str, dict[str, Any]], Any],
) -> None:
    """Write the folder next to its place, then move it there, so that it is never half written."""
    whole = {key: value for key, value in options.items() if key not in _OF_THE_COPY}
    model = read(source, whole)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_room(model.get_memory_footprint(), folder.parent)
    with TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        model.save_pretrained(made)
        with suppress(OSError, ValueError, KeyError):  # a file without a tokenizer
            where = {key: options.get(key) for key in (*WHERE, "gguf_file")}
            gguf_tokenizer(source, **where).save_pretrained(made)
        (made / FINGERPRINT).write_text(json.dumps(wanted, indent=1) + "\n")
        rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _check_room(needed: int, where: Path) -> None:
    free = disk_usage(where).free
    if free < needed:
        raise LoadError(
            f"The converted model takes {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free in "
            f"{str(where)!r}. Free some, pass a folder on another disk as save_converted, or leave "
            "save_converted out: the file is then read each time."
        )

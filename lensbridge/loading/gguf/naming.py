"""Which GGUF file is meant, and where it lies."""

import os
import re
from pathlib import Path
from typing import Any

from lensbridge.errors import LoadError

SUFFIX = ".gguf"
WHERE = (
    "revision",
    "token",
    "subfolder",
    "cache_dir",
    "force_download",
    "local_files_only",
)
"""Options of `from_pretrained` that say which file of a repository is meant."""
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def named_by(model: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A path of a file as its folder and `gguf_file=`; anything else as it is.

    Raises:
        LoadError: there is no such file, or two are named.
    """
    if not isinstance(model, (str, os.PathLike)) or not os.fspath(model).endswith(SUFFIX):
        return model, options
    path = Path(model).expanduser()
    if path.is_dir():
        return model, options
    if options.get("gguf_file") is not None:
        raise LoadError(
            f"Both {str(model)!r} and gguf_file= name a file. Pass the folder, or one file."
        )
    if not path.is_file():
        raise LoadError(
            f"There is no file {str(model)!r}. For a file of a repository on the hub pass the "
            f'repository and the file: load("owner/name", gguf_file={path.name!r}).'
        )
    return path.parent, {**options, "gguf_file": path.name}


def file_of(source: str, options: dict[str, Any]) -> Path:
    """The GGUF file on this machine. A file on the hub is downloaded, with the other parts of it.

    Args:
        source: a folder or a hub id.
        options: of `from_pretrained`.

    Raises:
        LoadError: there is no such file in the folder, or it is not the first part.
        OSError: the hub has no such file, or is out of reach.
    """
    name = str(options["gguf_file"])
    names = parts_of(name)
    if Path(source).is_dir():
        folder = Path(source) / (options.get("subfolder") or "")
        for one in names:
            if not (folder / one).is_file():
                raise LoadError(f"{str(folder)!r} has no file {one!r}. {present_in(folder)}")
        return folder / name
    from transformers.utils import cached_file

    where = {key: options[key] for key in WHERE if options.get(key) is not None}
    found = [cached_file(source, one, **where) for one in names]
    return Path(found[0])


def parts_of(name: str) -> list[str]:
    """The files that a file is one part of, as llama.cpp names them; mostly that file alone.

    Raises:
        LoadError: it is a later part.

    Example:
        >>> parts_of("m-00001-of-00002.gguf")
        ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    found = _SHARD.fullmatch(name)
    if found is None:
        return [name]
    stem, number, count = found.groups()
    if int(number) != 1:
        first = f"{stem}-00001-of-{count}{SUFFIX}"
        raise LoadError(f"{name!r} is a later part of a file. Name the first: {first!r}.")
    return [f"{stem}-{index + 1:05}-of-{count}{SUFFIX}" for index in range(int(count))]


def present_in(folder: Path) -> str:
    """A sentence about the GGUF files of a folder; nothing if there are none."""
    there = [repr(path.name) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    return f"It has GGUF files: pass gguf_file={' or '.join(there)}." if there else ""

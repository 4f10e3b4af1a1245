"""Where a model that is named lies: a folder, or a repository on the hub."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from lensbridge.errors import LoadError
from lensbridge.loading.aliases import hub_id_of, refuse_misspelt
from lensbridge.loading.gguf import present_in

DEMO = "demo"
"""The name of the bundled model."""


def demo_folder() -> str:
    """The folder of the bundled model."""
    return str(files("lensbridge") / "demo" / "model")


def source_of(name: "str | os.PathLike[str]", options: dict[str, Any]) -> str:
    """The folder or the hub id that a name means.

    Args:
        name: a hub id or a short name of one, a folder, or "demo".
        options: of `from_pretrained`.

    Raises:
        TypeError: it is no name.
        LoadError: there is no such folder, or no saved model in it; or the name is misspelt.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(
            f"load() takes a hub id, a folder or a model object, not {type(name).__name__}."
        )
    text = os.fspath(name)
    if text == DEMO and not Path(DEMO).is_dir():
        return demo_folder()
    folder = Path(text).expanduser()
    if folder.is_dir():
        kinds, inside = ("config.json", "adapter_config.json"), options.get("subfolder") or ""
        found = any((folder / inside / kind).is_file() for kind in kinds)
        if not found and options.get("gguf_file") is None:
            raise LoadError(
                f"The folder {text!r} has no config.json, so it is not a saved model. "
                + (present_in(folder) or "Save one there with hf_model.save_pretrained(folder).")
            )
        return str(folder)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise LoadError(f"There is no folder {text!r}.")
    refuse_misspelt(text)
    return hub_id_of(text)

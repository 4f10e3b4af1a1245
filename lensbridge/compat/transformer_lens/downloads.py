"""Data sets and files from the hub."""

from importlib import import_module
from pathlib import Path
from typing import Any

from lensbridge.errors import InputError, LoadError, suggest

DATASETS: dict[str, dict[str, Any]] = {
    "openwebtext": {"path": "stas/openwebtext-10k", "split": "train"},
    "owt": {"path": "stas/openwebtext-10k", "split": "train"},
    "pile": {"path": "NeelNanda/pile-10k", "split": "train"},
    "c4": {"path": "NeelNanda/c4-10k", "split": "train"},
    "code": {"path": "NeelNanda/code-10k", "split": "train"},
    "python": {"path": "NeelNanda/code-10k", "split": "train"},
    "c4_code": {"path": "NeelNanda/c4-code-20k", "split": "train"},
    "c4-code": {"path": "NeelNanda/c4-code-20k", "split": "train"},
    "wiki": {"path": "wikitext", "name": "wikitext-2-raw-v1", "split": "train"},
}
"""Short names of small samples -> the arguments of `datasets.load_dataset`."""


def get_dataset(dataset_name: str, **kwargs: Any) -> Any:
    """A small sample of a corpus, with a `text` column.

    Args:
        dataset_name: "openwebtext", "pile", "c4", "code", "c4_code" or "wiki".
        kwargs: for `datasets.load_dataset`.

    Raises:
        InputError: an unknown name.
        ImportError: `datasets` is not installed.
    """
    if dataset_name not in DATASETS:
        raise InputError(f"There is no sample {dataset_name!r}.{suggest(dataset_name, DATASETS)}")
    load = _datasets().load_dataset
    found = load(**{**DATASETS[dataset_name], **kwargs})
    return found.rename_column("content", "text") if "content" in found.column_names else found


def _datasets() -> Any:
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise ImportError("Data sets need datasets, which is not installed.") from error
    return datasets


def keep_single_column(dataset: Any, col_name: str) -> Any:
    """A data set with only one of its columns."""
    return dataset.select_columns([col_name])


def download_file_from_hf(
    repo_name: str,
    file_name: str,
    subfolder: str = ".",
    cache_dir: str | None = None,
    force_is_torch: bool = False,
    weights_only: bool = True,
    **kwargs: Any,
) -> Any:
    """A file of the hub: the content of a torch, safetensors or JSON file, otherwise its path.

    Args:
        repo_name: the repository.
        file_name: the file.
        subfolder: the folder in the repository.
        cache_dir: where to keep it.
        force_is_torch: read it with torch whatever its name.
        weights_only: read tensors and plain containers alone. With False a torch file is unpickled,
            which runs whatever code its author put there.
        kwargs: for `huggingface_hub.hf_hub_download`.

    Raises:
        LoadError: a torch file holds more than tensors.
    """
    import json
    from pickle import UnpicklingError

    import torch
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    where = None if subfolder == "." else subfolder
    found = hf_hub_download(repo_name, file_name, subfolder=where, cache_dir=cache_dir, **kwargs)
    if file_name.endswith(".safetensors"):
        return load_file(found)
    if file_name.endswith((".pth", ".pt")) or force_is_torch:
        try:
            return torch.load(found, map_location="cpu", weights_only=weights_only)
        except UnpicklingError as error:
            raise LoadError(
                f"{file_name!r} of {repo_name!r} holds more than tensors, and reading the rest "
                "could run code that its author put there. If you trust the author, pass "
                "weights_only=False."
            ) from error
    return json.loads(Path(found).read_text()) if file_name.endswith(".json") else found


def clear_huggingface_cache() -> None:
    """Delete every model and data set that was downloaded from the hub."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        known = scan_cache_dir()
    except CacheNotFound:
        return
    known.delete_revisions(
        *(one.commit_hash for repo in known.repos for one in repo.revisions)
    ).execute()

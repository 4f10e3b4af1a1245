"""What the shell completes: models on this machine, points, words. Nothing here imports torch."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


def of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Completion of an option that takes one of a few words."""

    def complete(incomplete: str) -> list[str]:
        return [one for one in known if one.startswith(incomplete)]

    return complete


def models(incomplete: str) -> list[str]:
    """'demo', models in the hub's cache, and folders."""
    found = ["demo", *_cached(), *_folders(incomplete)]
    return [one for one in found if one.startswith(incomplete)]


def points(incomplete: str) -> list[str]:
    """Short names of points; after `blocks.N.`, the full names of a layer."""
    from lensbridge.points.names import short_names
    from lensbridge.points.table import POINTS

    start, layer, _ = (*incomplete.split(".", 2), "", "")[:3]
    if start == "blocks" and layer.isdigit():
        full = [one.name.replace("{i}", layer) for one in POINTS if "{i}" in one.name]
        return [one for one in full if one.startswith(incomplete) and "{" not in one]
    short = (one for one in short_names() if not one.startswith("hook_"))
    return sorted(one for one in short if one.startswith(incomplete))


def _cached() -> Iterator[str]:
    """Hub ids whose files are on this machine, from the names of the cache's folders."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    if cache.is_dir():
        for folder in sorted(cache.glob("models--*")):
            yield folder.name.removeprefix("models--").replace("--", "/")


def _folders(incomplete: str) -> Iterator[str]:
    shown, _, start = incomplete.rpartition("/")
    root = Path(f"{shown}/" if "/" in incomplete else ".").expanduser()
    if root.is_dir():
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and entry.name.startswith(start) and not entry.name.startswith("."):
                yield f"{shown}/{entry.name}" if "/" in incomplete else f"./{entry.name}"

"""The manifest of a harvest: what was run, what is in the shards, and where to go on."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lensbridge.errors import InputError

FORMAT = "lensbridge.harvest/1"
NAME = "manifest.json"

_MOST = 3
"""How many differences an error lists."""


@dataclass(frozen=True)
class Shard:
    """One file of activations.

    Args:
        file: its name in the folder.
        tokens: how many it has.
        rows: of how many rows.
        bytes: its size.
    """

    file: str
    tokens: int
    rows: int
    bytes: int


@dataclass
class Manifest:
    """What a harvest is of and how far it is. In the folder it is `manifest.json`.

    Args:
        model: name, class, architecture, sizes and dtype of the model.
        source: name, size and fingerprint of the file of texts.
        points: canonical name -> its axes after the token.
        options: layout, length and dtype of the activations.
        place: where in the file the next row begins: `offset`, `line`, `token`.
        shards: the files that are finished.
        complete: whether the whole file was run, or as many tokens as were asked for.
    """

    model: dict[str, Any]
    source: dict[str, Any]
    points: dict[str, str]
    options: dict[str, Any]
    place: dict[str, int] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    complete: bool = False
    format: str = FORMAT

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(one.tokens for one in self.shards)

    def write(self, folder: Path) -> None:
        """Write it into a folder; a crash leaves the old one or the new one, never a part."""
        path, new = folder / NAME, folder / f"{NAME}.new"
        new.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(new, path)

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The manifest in a folder, or None if there is none.

        Raises:
            InputError: the file is not a manifest.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise InputError(f"{path} has the format {found['format']!r}, not {FORMAT!r}.")
            return cls(**{**found, "shards": [Shard(**one) for one in found["shards"]]})
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is not the manifest of a harvest: {error!r}.") from error

    def require_same(self, other: "Manifest") -> None:
        """Refuse to continue a different harvest.

        Raises:
            InputError: with what differs.
        """
        differing = [
            f"{part} {_difference(getattr(self, part), getattr(other, part))}"
            for part in ("model", "source", "options")
            if getattr(self, part) != getattr(other, part)
        ]
        if self.points != other.points:
            differing.append(f"points {_some(self.points)}, not {_some(other.points)}")
        if differing:
            raise InputError(
                "The folder has another harvest, which this one cannot continue: "
                f"{'; '.join(differing)}. Choose another folder, or the same model, text and "
                "options."
            )


def _some(names: Mapping[str, str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(list(names)[:_MOST]) + more


def _difference(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    keys = [key for key in {**mine, **other} if mine.get(key) != other.get(key)]
    more = f" and {len(keys) - _MOST} more" if len(keys) > _MOST else ""
    told = [f"{key} {mine.get(key)!r}, not {other.get(key)!r}" for key in keys[:_MOST]]
    return ", ".join(told) + more

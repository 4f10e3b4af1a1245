"""Folder: the files of a harvest. A shard is there once a manifest has a line for it.

    spec.json                     what the harvest is of
    tokenizer/                    to read the tokens as text
    manifest/WRITER.jsonl         a line for each finished shard
    cuts.jsonl                    where each shard begins, if that was asked for
    shard-000017.safetensors      its tensors

A file is written under another name, flushed, given its name, and only then named in the manifest,
so that a crash at any moment leaves no shard that is there in part.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.harvest.differences import FORMAT, differences
from lensbridge.harvest.disk import checksum, finish
from lensbridge.harvest.journal import lines
from lensbridge.harvest.locks import Lock, is_held
from lensbridge.harvest.manifest import Shard, file_of, note, read
from lensbridge.harvest.packing import Cut

_OLD = 60.0
"""Seconds after which a folder that was being filled is left over."""


@dataclass(frozen=True)
class Folder:
    """The folder of a harvest.

    Args:
        path: where it is.
    """

    path: Path

    @property
    def spec_file(self) -> Path:
        """What the harvest is of."""
        return self.path / "spec.json"

    @property
    def manifests(self) -> Path:
        """The folder of the manifests."""
        return self.path / "manifest"

    def begin(self, identity: Mapping[str, Any], resume: bool) -> None:
        """Make the folder, or require that it is of the same harvest.

        Raises:
            InputError: it has shards and is not to be resumed, is of another harvest, or cannot be
                written.
        """
        try:
            self.manifests.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder {self.path} cannot be made: {error}.") from error
        if self.spec_file.exists():
            told = differences(self.identity(), identity)
            if told:
                raise InputError(
                    f"The folder {self.path} has another harvest, which this one cannot continue: "
                    f"{told}. Choose another folder, or the same model, data and settings."
                )
        else:
            self._refuse_strangers()
            self._write(self.spec_file, json.dumps(identity, indent=2) + "\n")
        if not resume and self.shards():
            raise InputError(
                f"The folder {self.path} has shards of this harvest already. Pass resume=True "
                "(--resume) to go on, or choose another folder."
            )

    def _refuse_strangers(self) -> None:
        found = sorted(self.path.glob("shard-*.safetensors"))
        if found:
            raise InputError(
                f"The folder {self.path} has {found[0].name} but no spec.json, so it is not known "
                "what it holds. Choose another folder."
            )

    @property
    def cuts_file(self) -> Path:
        """Where each shard begins."""
        return self.path / "cuts.jsonl"

    def cuts(self) -> dict[int, Cut | None]:
        """Where each shard begins, and None for the number after the last; empty if not kept."""
        found = lines(self.cuts_file) if self.cuts_file.exists() else ()
        return {
            int(one["number"]): None if one["start"] is None else Cut.from_dict(one["start"])
            for one in found
        }

    def keep_cuts(self, cuts: Mapping[int, Cut]) -> None:
        """Keep where each shard begins.

        Raises:
            InputError: the folder cannot be written.
        """
        told = [{"number": number, "start": cut.to_dict()} for number, cut in cuts.items()]
        told.append({"number": len(cuts), "start": None})
        self._write(self.cuts_file, "".join(f"{json.dumps(one)}\n" for one in told))

    def identity(self) -> dict[str, Any]:
        """What the harvest is of.

        Raises:
            InputError: the folder has none, or one of another format.
        """
        try:
            found: dict[str, Any] = json.loads(self.spec_file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"There is no harvest in {self.path}: no spec.json.") from error
        except ValueError as error:
            raise InputError(f"{self.spec_file} is not the file of a harvest: {error}.") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError(f"{self.spec_file} does not have the format {FORMAT!r}.")
        return found

    def shards(self) -> dict[int, Shard]:
        """The finished shards, by number, from all manifests.

        A line that was cut off by a crash is not there; its shard is computed again.

        Raises:
            InputError: two manifests disagree about a shard.
        """
        found: dict[int, Shard] = {}
        for path in sorted(self.manifests.glob("*.jsonl")):
            for shard in read(path):
                known = found.setdefault(shard.number, shard)
                if (known.crc32, known.bytes) != (shard.crc32, shard.bytes):
                    raise InputError(
                        f"Shard {shard.number} of {self.path} was written twice, with different "
                        f"bytes ({known.crc32}, {shard.crc32}). Its writers do not compute alike "
                        "(another machine, or number of threads): delete the folder's "
                        f"{shard.file} and the lines of shard {shard.number} in manifest/."
                    )
        return dict(sorted(found.items()))

    def damaged(self, shards: Mapping[int, Shard], thorough: bool) -> dict[int, str]:
        """Shards whose file is not as their line says, with what is wrong.

        Args:
            shards: which.
            thorough: compare checksums too, which reads all of each file.
        """
        found = {}
        for number, shard in shards.items():
            path = self.path / shard.file
            if not path.exists():
                found[number] = "is missing"
            elif path.stat().st_size != shard.bytes:
                found[number] = f"has {path.stat().st_size} bytes, not {shard.bytes}"
            elif thorough and checksum(path) != shard.crc32:
                found[number] = "has other bytes than were written"
        return found

    @contextmanager
    def writing(self, writer: str) -> Iterator[Writer]:
        """A context in which this process writes shards under a name of its own.

        Raises:
            InputError: another living process writes under this name.
        """
        lock = Lock(self.manifests / f"{writer}.lock")
        try:
            taken = lock.take()
        except OSError as error:
            raise InputError(f"The folder {self.path} cannot be written: {error}.") from error
        if not taken:
            raise InputError(
                f"Another process writes to {self.path} as {writer!r}. Wait for it, or give each "
                "process a part of its own."
            )
        try:
            self.clean()
            yield Writer(self, writer)
        finally:
            lock.free()

    def clean(self) -> None:
        """Remove the unfinished files and the locks of processes that are no more."""
        for left in self.path.glob(".*.new"):
            owner = left.name.split("@")[-1].removesuffix(".new")
            if not is_held(self.manifests / f"{owner}.lock"):
                left.unlink(missing_ok=True)
        for left in self.path.glob(".tokenizer-*"):
            with suppress(FileNotFoundError):  # another process was first
                if time.time() - left.stat().st_mtime > _OLD:
                    shutil.rmtree(left, ignore_errors=True)
        for path in self.manifests.glob("*.lock"):
            lock = Lock(path)
            if lock.take():  # removed while it is held, so that nobody takes it in between
                lock.free()

    def _write(self, path: Path, text: str) -> None:
        """Write a file as a whole; several ranks may do so at once.

        Raises:
            InputError: the folder cannot be written.
        """
        name = f"{path.stem}-{gethostname()}-{os.getpid()}"
        lock = Lock(self.manifests / f"{name}.lock")
        new = path.with_name(f".{path.name}@{name}.new")
        try:
            lock.take()  # so that `clean` of another rank leaves the file alone
            new.write_text(text, encoding="utf-8")
            finish(new, path)
        except OSError as error:
            raise InputError(f"The folder {self.path} cannot be written: {error}.") from error
        finally:
            lock.free()


@dataclass(frozen=True)
class Writer:
    """Writes shards and a manifest of its own.

    Args:
        folder: where.
        name: the name of the manifest.
    """

    folder: Folder
    name: str

    def write(self, number: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Shard:
        """Write a shard, and then its line.

        Args:
            number: of the shard.
            tensors: what is in it.
            about: the other fields of its line.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        path = self.folder.path / file_of(number)
        new = path.with_name(f".{path.name}@{self.name}.new")
        try:
            save_file(dict(tensors), new, metadata={"format": FORMAT})
            crc32, size = checksum(new), new.stat().st_size
            finish(new, path)
            shard = Shard(number=number, bytes=size, crc32=crc32, **about)
            note(self.folder.manifests / f"{self.name}.jsonl", shard)
        except Exception as error:
            new.unlink(missing_ok=True)
            raise InputError(
                f"Shard {number} could not be written to {self.folder.path}: {error}. The shards "
                "before it are finished; make room or choose a folder that can be written, and run "
                "again with resume=True."
            ) from error
        return shard

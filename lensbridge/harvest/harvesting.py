"""Harvest: activations of a dataset, written to a folder in shards."""

from __future__ import annotations

from os import PathLike

from lensbridge.harvest.activations import Activations
from lensbridge.harvest.documents import from_json, to_json
from lensbridge.harvest.engine import Engine, Told
from lensbridge.harvest.plan import Plan, plan
from lensbridge.harvest.report import Report
from lensbridge.harvest.running import index, run
from lensbridge.harvest.spec import Spec


class Harvest(Spec):
    """Activations of a dataset, to be written to a folder in shards.

    A shard is a function of this and of its number alone: its rows, their order and the
    composition of each batch do not depend on who computes it or when.

    Args:
        model: a hub id, a folder or "demo", which is loaded when it is needed; or a loaded model.
        data: files of texts (`.txt` with a text for each line, `.jsonl`, `.parquet`), one or
            several; or a list or a `datasets.Dataset` of texts, of chats or of rows of ids; or an
            iterable that gives the same each time.
        points: names, short names or globs of points that have a value for each token.
        layers: the layers of short names without one. None: all.
        rows: how documents become rows.
        keep: which tokens of a row are kept.
        reduce: what is stored instead of the values: "mean", "last", "norm", or a reduction of
            `lensbridge.harvest`. It is computed in float32.
        dtype: the dtype that is stored; None: the model's.
        batch: rows that run together.
        shard_tokens: tokens that are run for a shard, at most.
        field: the field of the text in records (`.jsonl`, `.parquet`, datasets).
        max_tokens: stop after the row with which so many tokens were run.

    Raises:
        InputError: a number that is too small, or an unknown word.

    Example:
        >>> import lensbridge, tempfile
        >>> spec = lensbridge.Harvest(
        ...     model="demo", data=["The Eiffel Tower is tall"] * 8, points=["resid_post"],
        ...     layers=[1], rows=lensbridge.Rows(length=16),
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> report = spec.run(folder)
        >>> acts = lensbridge.Activations(folder)
        >>> acts["resid_post", 1][:2].shape, len(acts) == report.tokens
        (torch.Size([2, 128]), True)
    """

    def plan(self) -> Plan:
        """What a run will write and take; the model is run on a few tokens only.

        The documents are read and tokenized once, so the counts are exact.

        Raises:
            InputError: the data cannot be read.
            UnknownPointError: there is no such point.
        """
        return plan(self)

    def run(
        self,
        out: str | PathLike[str],
        *,
        resume: bool = False,
        engine: Engine | None = None,
        part: str | tuple[int, int] | None = None,
        claim: bool = False,
        told: Told | None = None,
    ) -> Report:
        """Compute the shards that are not there yet, and write them.

        Under `torchrun` or `accelerate launch` rank r of n computes the shards r, r + n, ... An
        interrupt (Ctrl-C) ends the run after the shard under way; a second one at once.

        Args:
            out: the folder, which is made if there is none.
            resume: go on with what the folder has. Without it a folder with shards is refused.
            engine: who computes the shards, such as `lensbridge.engines.Ray(actors=8)`. None: this
                process, and with it the other ranks, if there are any.
            part: `"3/64"` (or `(3, 64)`) for the fourth of 64 parts, which need not know of each
                other. None: the rank that the environment names, or all.
            claim: take any shard that no living process has, not every nth; for processes of
                unequal speed that share a file system with locks.
            told: called after each batch with the state of the run.

        Raises:
            InputError: the data are empty or cannot be read, there is another harvest in the
                folder, or it has shards and `resume` is not set.
            UnknownPointError: there is no such point.
        """
        return run(self, out, resume, engine, part, claim, told)

    def index(self, out: str | PathLike[str]) -> int:
        """Keep in a folder where every shard begins, before many parts run.

        A part then begins at once, and reads only the documents of its own shards. Without it each
        part reads and tokenizes all documents on the way. The documents are read and tokenized
        once; the model is not run.

        Args:
            out: the folder, which is made if there is none.

        Returns:
            The number of shards.

        Raises:
            InputError: the data are empty or cannot be read, or there is another harvest in the
                folder.
        """
        return index(self, out)

    def opened(self, out: str | PathLike[str]) -> Activations:
        """The activations in a folder, once they are written."""
        return Activations(out)

    def to_json(self) -> str:
        """The harvest as JSON, for the command line and for other machines.

        Raises:
            InputError: the model or the data is an object, not a name or a path.
        """
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Harvest:
        """The harvest that `to_json` wrote.

        Raises:
            InputError: it is not one, or has unknown fields.
        """
        return cls(**from_json(text))

"""Texts joined and cut into rows of tokens without padding, for training and evaluation."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from lensbridge.errors import InputError
from lensbridge.inputs.prompts import Encoded

_BATCH = 1000
"""How many texts are joined before they are cut into rows; tokens left over are dropped."""


@dataclass(frozen=True)
class Cutter:
    """Cuts texts into rows of one length.

    Args:
        tokenizer: a HuggingFace tokenizer; it is not changed.
        max_length: tokens of a row, BOS included.
        add_bos_token: whether each row begins with BOS.
    """

    tokenizer: Any
    max_length: int
    add_bos_token: bool

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise InputError("The tokenizer has no EOS token, which is needed between the texts.")
        if self.add_bos_token and self.tokenizer.bos_token_id is None:
            raise InputError("The tokenizer has no BOS token: pass add_bos_token=False.")
        if self.max_length <= self.add_bos_token:
            raise InputError(f"max_length={self.max_length} leaves no room for tokens.")

    def rows(self, texts: Sequence[str]) -> Tensor:
        """All rows of a batch of texts; tokens that do not fill the last row are dropped.

        If all texts together do not fill one row, the one row is padded on the right.

        Shapes: `[row, max_length]`
        """
        length = self.max_length - self.add_bos_token
        ids = torch.tensor(self._joined(texts), dtype=torch.long)
        if not len(ids):
            return ids.reshape(0, self.max_length)
        if len(ids) < length:
            pad = self.tokenizer.pad_token_id
            fill = self.tokenizer.eos_token_id if pad is None else pad
            ids = torch.cat([ids, torch.full((length - len(ids),), fill)])
        rows = ids[: len(ids) // length * length].view(-1, length)
        if not self.add_bos_token:
            return rows
        return torch.cat([torch.full((len(rows), 1), self.tokenizer.bos_token_id), rows], dim=1)

    def _joined(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return [one for ids in encoded for one in (*ids, eos)][:-1]


@dataclass(frozen=True)
class TokenRows(Dataset[dict[str, Tensor]]):
    """Rows of tokens: `rows["tokens"]` is all of them, `rows[i]` one as `{"tokens": ...}`.

    Shapes: tokens `[row, pos]`
    """

    tokens: Tensor

    def as_input(self) -> Encoded:
        """What a run takes of them: all rows."""
        return Encoded(self.tokens, torch.ones_like(self.tokens), None)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Any:
        if index == "tokens":
            return self.tokens
        return {"tokens": self.tokens[index]}


class TokenStream(IterableDataset[dict[str, Tensor]]):
    """Rows of tokens, made one after another while iterating."""

    def __init__(self, texts: Iterable[str], cutter: Cutter) -> None:
        self.texts = texts
        self.cutter = cutter

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows in _batches(self.texts, self.cutter):
            yield from ({"tokens": row} for row in rows)


@dataclass(frozen=True)
class Column:
    """The texts of an iterable of texts, or of mappings with a column of texts."""

    documents: Iterable[str | Mapping[str, Any]]
    name: str

    def __iter__(self) -> Iterator[str]:
        for one in self.documents:
            if not isinstance(one, str | Mapping) or (
                not isinstance(one, str) and self.name not in one
            ):
                raise InputError(
                    f"A text, or a mapping with {self.name!r}, was expected; got {one!r}."
                )
            yield one if isinstance(one, str) else one[self.name]


def tokenize_and_concatenate(
    dataset: Any,
    tokenizer: Any,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int | None = 10,
) -> Any:
    """Join texts with EOS between them, and cut the tokens into rows of one length.

    A thousand texts are joined at a time; tokens that do not fill a row are dropped each time.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`, or any iterable of texts or of mappings
            with a text, for which the library `datasets` is not needed.
        tokenizer: a HuggingFace tokenizer with EOS; it is not changed.
        streaming: make the rows while iterating over them, without worker processes.
        max_length: tokens of a row.
        column_name: the column with the text.
        add_bos_token: begin each row with BOS.
        num_proc: worker processes, for a `datasets.Dataset`.

    Returns:
        For a dataset, one of the same kind with the column `tokens` as tensors; otherwise
        `TokenRows`, or with `streaming` a `TokenStream`. A `DataLoader` takes all of these.

    Raises:
        InputError: a special token that the tokenizer lacks, or documents without a text.

    Source: TransformerLens's function of this name.

    Example:
        >>> import lensbridge
        >>> from lensbridge.analysis import tokenize_and_concatenate
        >>> model = lensbridge.load("demo")
        >>> texts = ["The Eiffel Tower is in the city of Paris."] * 9
        >>> tokenize_and_concatenate(texts, model.tokenizer, max_length=16)["tokens"].shape
        torch.Size([6, 16])
    """
    cutter = Cutter(tokenizer, max_length, add_bos_token)
    library = sys.modules.get("datasets")  # if this is one of its datasets, it was imported
    if library is not None and isinstance(dataset, library.Dataset | library.IterableDataset):
        lazy = isinstance(dataset, library.IterableDataset)
        return _mapped(
            dataset, cutter, column_name, {} if streaming or lazy else {"num_proc": num_proc}
        )
    texts = Column(dataset, column_name)
    if streaming:
        return TokenStream(texts, cutter)
    parts = list(_batches(texts, cutter))
    if not parts:
        raise InputError("The dataset has no texts.")
    return TokenRows(torch.cat(parts))


def _batches(texts: Iterable[str], cutter: Cutter) -> Iterator[Tensor]:
    source = iter(texts)
    while batch := list(islice(source, _BATCH)):
        yield cutter.rows(batch)


def _mapped(dataset: Any, cutter: Cutter, column_name: str, how: dict[str, Any]) -> Any:
    if dataset.column_names is not None and column_name not in dataset.column_names:
        raise InputError(
            f"The dataset has no column {column_name!r}; it has {', '.join(dataset.column_names)}."
        )

    def cut(batch: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": cutter.rows(batch[column_name]).numpy()}

    rows = dataset.map(
        cut, batched=True, batch_size=_BATCH, remove_columns=dataset.column_names, **how
    )
    return rows.with_format("torch")

"""`lensbridge.evals` for models of this package, and loss on samples of the usual corpora."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from lensbridge import evals
from lensbridge.analysis import tokenize_and_concatenate
from lensbridge.compat.transformer_lens.downloads import get_dataset
from lensbridge.compat.transformer_lens.translation import lens_of, translated_names

globals().update(translated_names(evals))


def _loader(sample: str, tokenizer: Any, batch_size: int = 8) -> Any:
    """Batches of a sample's tokens, in rows of 1024; the sample is downloaded."""
    rows = tokenize_and_concatenate(get_dataset(sample), tokenizer, num_proc=1)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, drop_last=True)


make_wiki_data_loader = partial(_loader, "wiki")
make_owt_data_loader = partial(_loader, "owt")
make_pile_data_loader = partial(_loader, "pile")
make_code_data_loader = partial(_loader, "code")

DATASET_NAMES = ["wiki", "owt", "pile", "code"]
DATASET_LOADERS: list[Callable[..., Any]] = [
    make_wiki_data_loader,
    make_owt_data_loader,
    make_pile_data_loader,
    make_code_data_loader,
]


def evaluate(
    model: Any, truncate: int | None = 100, batch_size: int = 8, tokenizer: Any = None
) -> dict[str, float]:
    """Next-token loss on samples of four corpora, which are downloaded.

    Args:
        model: the model.
        truncate: use at most this many batches of each; None: all.
        batch_size: rows in a batch.
        tokenizer: used instead of the model's.

    Units: nats
    """
    lens = lens_of(model)
    tokens = tokenizer or lens.tokens.need()
    return {
        f"{name}_loss": evals.evaluate_on_dataset(lens, load(tokens, batch_size), truncate)
        for name, load in zip(DATASET_NAMES, DATASET_LOADERS, strict=True)
    }


__all__ = [
    *evals.__all__,
    "DATASET_LOADERS",
    "DATASET_NAMES",
    "evaluate",
    "make_code_data_loader",
    "make_owt_data_loader",
    "make_pile_data_loader",
    "make_wiki_data_loader",
]

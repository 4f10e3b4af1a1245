"""The texts in which a value is largest, and the distribution of its values, in one pass."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prompts import Encoded
from lensbridge.inputs.special import Excluded, is_special, known_special_ids
from lensbridge.maxima.effects import text_of
from lensbridge.maxima.tally import Tally

Pick = Callable[[ActivationCache], Tensor]
"""The value at each token, `[batch, pos]`."""


@dataclass(frozen=True)
class Peak:
    """A text around the token at which the value is largest in it.

    Args:
        value: the largest value.
        text: the number of the text, from 0.
        position: the token's position in the text, BOS included.
        at: its index in `ids` and `values`.
        ids: the tokens around it.
        values: their values.
    """

    value: float
    text: int
    position: int
    at: int
    ids: tuple[int, ...]
    values: tuple[float, ...]


@dataclass
class Peaks:
    """Collects the largest values of texts, one for each text.

    Args:
        k: how many texts are kept.
        context: how many tokens are kept on each side of the largest.
    """

    k: int
    context: int
    found: list[Peak] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    texts: int = 0

    def add(self, ids: Tensor, values: Tensor, counted: Tensor) -> None:
        """Take a batch into account.

        Args:
            ids: the tokens; after a row's last one -1.
            values: the value at each.
            counted: which tokens count.

        Shapes: all `[batch, pos]`
        """
        values, counted = values.detach().float().cpu(), counted.cpu()
        self.tally.add(values[counted])
        best, places = values.masked_fill(~counted, -torch.inf).max(1)
        least = self.found[-1].value if len(self.found) == self.k else -torch.inf
        for row in (best > least).nonzero().flatten().tolist():
            self.found.append(self._peak(row, int(places[row]), ids.cpu()[row], values[row]))
        self.found = sorted(self.found, key=lambda peak: (-peak.value, peak.text))[: self.k]
        self.texts += len(ids)

    def _peak(self, row: int, place: int, ids: Tensor, values: Tensor) -> Peak:
        start, length = max(0, place - self.context), int((ids >= 0).sum())
        part = slice(start, min(length, place + self.context + 1))
        shown = tuple(ids[part].tolist()), tuple(values[part].tolist())
        return Peak(float(values[place]), self.texts + row, place, place - start, *shown)


@dataclass(frozen=True)
class Search:
    """How texts are searched.

    Args:
        k: how many texts are kept.
        context: how many tokens are kept on each side of the largest.
        batch_size: texts that are run together.
        limit: where texts are cut; None: at the model's context.
        excluded: special tokens that are left out.

    Raises:
        InputError: a number that is too small.
    """

    k: int
    context: int
    batch_size: int
    limit: int | None
    excluded: Excluded

    def __post_init__(self) -> None:
        least = {"k": 1, "batch_size": 1, "context": 0}
        for what, smallest in least.items():
            given = getattr(self, what)
            if given < smallest:
                raise InputError(f"{what}={given} is too small: it is {smallest} or more.")


class Maxima(NamedTuple):
    """What was found in some texts: the first fields of a card."""

    peaks: tuple[Peak, ...]
    tokens: tuple[tuple[str, ...], ...]
    tally: Tally
    texts: int


@torch.no_grad()
def maxima_of(model: HookedModel, name: str, pick: Pick, texts: Any, search: Search) -> Maxima:
    """The largest values in some texts, which are run one batch after another.

    Raises:
        InputError: there are no texts.
    """
    special = known_special_ids(model.tokens, model.native, search.excluded)
    peaks = Peaks(search.k, search.context)
    for rows in _batches(model, texts, search.batch_size, search.limit or model.cfg.n_ctx):
        _, cache = model.run_with_cache(rows, names_filter=[name], return_type=None)
        mask = rows.mask.bool()
        values = pick(cache).masked_fill(~mask.to(cache[name].device), 0.0)  # of padding
        peaks.add(_trimmed(rows), values, mask & ~is_special(rows.ids, special))
    if not peaks.tally.count:
        raise InputError("There are no tokens to count in the texts (special tokens are left out).")
    found = tuple(peaks.found)
    tokens = tuple(tuple(text_of(model, one) for one in peak.ids) for peak in found)
    return Maxima(found, tokens, peaks.tally, peaks.texts)


def _trimmed(rows: Encoded) -> Tensor:
    """The ids, with -1 for padding."""
    return rows.ids.masked_fill(~rows.mask.bool(), -1)


def _batches(model: HookedModel, texts: Any, size: int, limit: int | None) -> Iterator[Encoded]:
    """Rows of tokens, padded on the right, from texts or from rows of ids."""
    texts = texts.as_input() if callable(getattr(texts, "as_input", None)) else texts
    if isinstance(texts, Tensor):
        if texts.ndim != 2 or texts.is_floating_point():
            raise InputError(f"Rows of token ids are [row, pos], not {list(texts.shape)}.")
        texts = Encoded(texts, torch.ones_like(texts), None)
    if isinstance(texts, Encoded):
        rows = texts.cut(limit)
        for i in range(0, len(rows.ids), size):
            part = slice(i, i + size)
            yield Encoded(rows.ids[part], rows.mask[part], rows.prepend_bos)
        return
    yield from _of_texts(model, [texts] if isinstance(texts, str) else texts, size, limit)


def _of_texts(
    model: HookedModel, texts: Iterable[str], size: int, limit: int | None
) -> Iterator[Encoded]:
    source = iter(texts)
    while batch := list(islice(source, size)):
        wrong = [one for one in batch if not isinstance(one, str) or not one]
        if wrong:
            raise InputError(f"Texts are strings that are not empty, not {wrong[0]!r:.60}.")
        yield model.tokens.encode(batch, padding_side="right", limit=limit)

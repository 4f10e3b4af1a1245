"""Attention patterns of a cache: which one is meant, its heads, and the text of its tokens."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from lensbridge.cache.owner import CachedModel, Decodes
from lensbridge.errors import InputError
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.points.names import Name
from lensbridge.tensors.position_forms import TokenMask, as_positions, by_row
from lensbridge.tensors.slices import PosSlice

ENDS = ("attn.hook_pattern", "attn.hook_attn_scores")
"""How the names of weights and of scores end."""


class Patterns(Protocol):
    """The parts of a cache that are read."""

    model: CachedModel | None
    tokens: Tensor | None
    attention_mask: Tensor | None
    has_batch_dim: bool

    def __getitem__(self, name: Name) -> Tensor: ...

    def canonical(self, name: Name) -> str:
        """The name under which an activation is stored."""


def pattern_name(cache: Patterns, layer: int | Name) -> str:
    """The name of the pattern that is meant.

    Raises:
        InputError: it is no pattern.
    """
    name = cache.canonical(("pattern", layer) if isinstance(layer, int) else layer)
    if not name.endswith(ENDS):
        raise InputError(
            f"{name} is no attention pattern. Give a layer, as plot_attention(3), or the name of a "
            "pattern, as plot_attention('encoder.3.attn.hook_pattern')."
        )
    return name


def is_scores(name: str) -> bool:
    """Whether a pattern is of scores, before the softmax."""
    return name.endswith(ENDS[1])


def example_of(cache: Patterns, name: str, batch: int) -> Tensor:
    """The pattern of one example, `[head, query, key]`."""
    pattern = cache[name].detach()
    if not cache.has_batch_dim:
        return pattern
    if not -len(pattern) <= batch < len(pattern):
        raise InputError(f"There is no example {batch}: the batch has {len(pattern)}.")
    return pattern[batch]


def heads_of(head: int | Sequence[int] | None, count: int) -> list[int]:
    """The numbers of the heads that are meant.

    Raises:
        InputError: there is no such head, or none is named.
    """
    asked = range(count) if head is None else [head] if isinstance(head, int) else list(head)
    wrong = [one for one in asked if not -count <= one < count]
    if wrong or not asked:
        named = ", ".join(map(str, wrong)) or "to draw"
        raise InputError(f"There is no head {named}: this layer has {count}, 0 to {count - 1}.")
    return [one % count for one in asked]


def title_of(name: str) -> str:
    """A pattern in words."""
    kind = "Attention scores" if is_scores(name) else "Attention"
    stack, layer, part, _ = name.split(".")[-4:]
    where = "" if stack in ("blocks", "decoder") else f" of the {stack}"
    return f"{'Cross-attention' if part == 'cross_attn' else kind}{where}, layer {layer}"


# --- tokens ----------------------------------------------------------------------------------


def _sides(cache: Patterns, name: str) -> tuple[bool, bool]:
    """Whether queries and keys are positions of the cache's tokens."""
    decoder = name.startswith("decoder.")
    crossing = ".cross_attn." in name
    native = None if cache.model is None else cache.model.native
    apart = native is not None and native.is_encoder_decoder
    return not (apart and decoder), crossing or not (apart and decoder)


def texts_of(
    cache: Patterns,
    name: str,
    batch: int,
    counts: Sequence[int],
    given: tuple[Sequence[str] | None, Sequence[str] | None],
) -> tuple[list[str], list[str]]:
    """The texts of queries and keys: those that are given, or the tokens of the input.

    Raises:
        InputError: other than one text for each position is given.
    """
    known = _known(cache, name, batch, counts)
    queries = _checked(given[0], known[0], "tokens")
    keys = _checked(given[1], known[1], "key_tokens")
    both = given[1] is None and given[0] is not None and counts[0] == counts[1]
    return queries, queries if both else keys


def _known(
    cache: Patterns, name: str, batch: int, counts: Sequence[int]
) -> tuple[list[str], list[str]]:
    """The tokens of queries and keys; numbers where the cache does not know them."""
    known = _tokens(cache, batch)
    made = []
    for count, ours in zip(counts, _sides(cache, name), strict=True):
        fit = ours and known is not None and len(known) == count
        made.append(list(known) if fit and known else list(map(str, range(count))))
    return made[0], made[1]


def _tokens(cache: Patterns, batch: int) -> Sequence[str] | None:
    if cache.tokens is None or not isinstance(cache.model, Decodes):
        return None
    ids = cache.tokens.reshape(-1, cache.tokens.shape[-1])
    row = ids[batch if len(ids) > 1 else 0]
    labels = PositionLabels.of(cache.model.tokens, row[None], None)
    return None if labels is None else labels.texts


def _checked(given: Sequence[str] | None, known: list[str], name: str) -> list[str]:
    if given is None:
        return known
    if isinstance(given, str) or len(given) != len(known):
        n = "one text" if isinstance(given, str) else f"{len(given)} texts"
        raise InputError(f"{name} has {n}; the pattern has {len(known)} positions there.")
    return list(given)


def kept_positions(
    cache: Patterns,
    name: str,
    batch: int,
    positions: PosSlice,
    counts: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Which queries and keys are shown: the chosen positions, without padding."""
    mask = cache.attention_mask
    row = None if mask is None or mask.ndim != 2 else mask[batch if len(mask) > 1 else 0].tolist()
    kept = []
    for count, ours in zip(counts, _sides(cache, name), strict=True):
        padded = row is not None and ours and len(row) == count
        there = [i for i in range(count) if not padded or (row is not None and row[i])]
        kept.append(_chosen(there, _of_example(positions, batch)))
    return kept[0], kept[1]


def _of_example(positions: PosSlice, batch: int) -> Any:
    """Positions in one form, of one example where they are given for each."""
    asked = as_positions(positions)
    if not (by_row(asked) or isinstance(asked, TokenMask)):
        return asked
    row = batch if len(asked) > 1 else 0
    if row >= len(asked):
        raise InputError(f"positions are of {len(asked)} examples, and the picture of {batch}.")
    return asked.of_rows([row]) if isinstance(asked, TokenMask) else asked[row]


def _chosen(there: list[int], asked: Any) -> list[int]:
    if asked is None:
        return there
    if isinstance(asked, slice):
        found = there[asked]
    elif isinstance(asked, TokenMask):
        found = [column for column in there if column in asked.rows[0]]
    else:
        several = asked if isinstance(asked, tuple) else (-1 if asked == "last" else asked,)
        wrong = [one for one in several if not -len(there) <= one < len(there)]
        if wrong:
            raise InputError(f"There are {len(there)} positions; {wrong} are none of them.")
        found = [there[one] for one in several]
    if not found:
        raise InputError(f"positions={asked!r} chooses none of {len(there)} positions.")
    return found

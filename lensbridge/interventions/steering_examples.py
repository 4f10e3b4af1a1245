"""Steering examples: the activations of contrasting texts, one for each text and point."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.positions import ColumnOwner, column_owner
from lensbridge.inputs.special import Excluded, is_special, known_special_ids
from lensbridge.interventions.axis import Axes
from lensbridge.interventions.columns import Positions, normalized, per_example
from lensbridge.interventions.interchange import source_of
from lensbridge.tensors.position_forms import TokenMask

ReadAt: TypeAlias = Positions | Literal["mean"] | Callable[[Any], Any]
"""Which tokens of each text are read: one, several, of which the mean is taken, or all ("mean");
or a function that gives the positions of a text."""


def activations_of(
    model: HookedModel,
    given: Any,
    names: Sequence[str],
    position: ReadAt,
    excluded: Excluded,
    batch_size: int | None,
    **input_options: Any,
) -> dict[str, Tensor]:
    """One vector for each text at each point, from one run; from several with a `batch_size`.

    Shapes: `[example, ...]` by name.
    """
    special = known_special_ids(model.tokens, model.native, excluded)
    asked = _asked(position, given)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for start, some in _batches(given, batch_size):
        cache = source_of(model, some, list(names), **input_options)
        mine = asked[start:][: _count(some)] if per_example(asked) else asked
        for name in names:
            owner = column_owner(model.native, name)
            found[name].append(_read(cache, name, mine, special, owner))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _batches(given: Any, size: int | None) -> list[tuple[int, Any]]:
    if size is None:
        return [(0, given)]
    if not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size is None or a number of texts, 1 or more, not {size!r}.")
    if _is_alone(given):
        return [(0, given)]
    return [(start, given[start : start + size]) for start in range(0, len(given), size)]


def _is_alone(given: Any) -> bool:
    """Whether an input is one example: a text, its ids, or the messages of a chat."""
    ids = isinstance(given, Tensor) and given.ndim == 1
    return ids or isinstance(given, str) or (len(given) > 0 and isinstance(given[0], int | dict))


def _count(given: Any) -> int:
    return 1 if _is_alone(given) else len(given)


def _asked(position: ReadAt, given: Any) -> Any:
    """Positions in one form; a function is called with each text, or with the ids of each."""
    if isinstance(position, str) and position == "mean":
        return position
    if callable(position):
        texts = [given] if _is_alone(given) else given
        return tuple(_several(normalized(position(text))) for text in texts)
    asked = normalized(position)
    if per_example(asked) and len(asked) != _count(given):
        raise InputError(
            f"position has {len(asked)} lists, and there are {_count(given)} examples on one side. "
            "Where the sides differ, pass a function of the text."
        )
    return asked


def _several(found: Any) -> tuple[int, ...]:
    if found == "last":
        return (-1,)
    if isinstance(found, int):
        return (found,)
    if isinstance(found, tuple) and len(found) == 1 and per_example(found):
        found = found[0]
    if isinstance(found, tuple) and not per_example(found):
        return found
    raise InputError(
        f"A function of positions gives the position of a token in its text, or a list of them, "
        f"not {found!r}."
    )


def _read(
    cache: ActivationCache, name: str, asked: Any, special: frozenset[int], owner: ColumnOwner
) -> Tensor:
    """One vector for each example. Shapes: `[example, ...]`"""
    value = cache[name]
    axes = cache.axes(name).split()
    if not {"b", "p"} <= set(axes):
        raise InputError(
            f"{name} has the axes {' '.join(axes)}; a steering vector needs a point with examples "
            "and positions."
        )
    value = Axes(tuple(axes)).ordered(value)
    real = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
    mask = cache.decoder_attention_mask if owner == "decoder" else cache.attention_mask
    if mask is not None and mask.shape == real.shape:
        real = mask.bool().to(value.device)
    if asked != "mean":
        return _at_positions(value, real, asked)
    known = owner in ("text", "encoder") and special and cache.tokens is not None
    if known and cache.tokens is not None and cache.tokens.shape == real.shape:
        real = real & ~is_special(cache.tokens, special).to(real.device)
    return _mean(value, real)


def _mean(value: Tensor, real: Tensor) -> Tensor:
    empty = (~real.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"Example {empty[0]} has only special tokens, which a mean leaves out. Pass "
            "exclude_special_tokens=False, or longer texts."
        )
    weight = real.to(value).reshape(*real.shape, *[1] * (value.ndim - 2))
    return (value * weight).sum(1) / weight.sum(1)


def _at_positions(value: Tensor, real: Tensor, asked: Any) -> Tensor:
    if isinstance(asked, TokenMask):
        padding = None if bool(real.all()) else real
        asked.check(real.shape[0], real.shape[1], padding, "position")
        asked = asked.tokens(real)
    each = asked if per_example(asked) else [asked] * len(value)
    rows = zip(value, real, each, strict=True)
    return torch.stack([_at(row, mask, one) for row, mask, one in rows])


def _at(row: Tensor, mask: Tensor, asked: Any) -> Tensor:
    """The token of an example that was asked for, or the mean of several."""
    tokens = row[mask]
    if asked is None or isinstance(asked, slice):
        some = tokens if asked is None else tokens[asked]
        if len(some):
            return some.mean(0)
        raise InputError(f"position={asked!r} is no token of an example with {len(tokens)} tokens.")
    wanted = [-1 if one == "last" else one for one in (asked if _is_list(asked) else (asked,))]
    wrong = [one for one in wanted if not -len(tokens) <= one < len(tokens)]
    if wrong or not wanted:
        raise InputError(
            "position is 'mean', 'last', the number of a token, a list of these or a function of "
            f"the text, and an example has {len(tokens)} tokens; got {(wrong or [asked])[0]!r}."
        )
    return tokens[wanted[0]] if len(wanted) == 1 else tokens[wanted].mean(0)


def _is_list(asked: Any) -> bool:
    return isinstance(asked, tuple)

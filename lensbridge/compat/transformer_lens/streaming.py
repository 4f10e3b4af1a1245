"""Generation that yields new tokens a few at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lensbridge.native.kv_cache import cache_in


def chunks(
    generate: Callable[..., Any], prompt: Tensor, new: int, each: int, stops: list[int]
) -> Iterator[Tensor]:
    """The prompt with the first new tokens, then the others.

    Keys and values are kept from one piece to the next, so hooks run on the prompt once and then on
    every new token, as in one call.

    Args:
        generate: continues `[batch, pos]` ids and returns HuggingFace's output.
        prompt: `[batch, pos]`
        new: how many tokens at most.
        each: how many tokens a piece has, those of the prompt included.
        stops: ids that end a row; the positions after them are filled with the first.

    Yields:
        `[batch, tokens]`
    """
    ids, shown, kept = prompt, 0, None
    while ids.shape[1] < prompt.shape[1] + new:
        left = prompt.shape[1] + new - ids.shape[1]
        count = min(left, max(1, each - (ids.shape[1] - shown)))
        more: dict[str, Any] = {} if kept is None else {"past_key_values": kept}
        found = generate(ids, max_new_tokens=count, **more)
        kept = cache_in(found)
        ids = torch.cat([ids, found.sequences[:, ids.shape[1] :]], dim=-1)
        ids, ended = _ended(ids, prompt.shape[1], stops)
        yield ids[:, shown:]
        shown = ids.shape[1]
        if ended:
            return


def _ended(ids: Tensor, start: int, stops: list[int]) -> tuple[Tensor, bool]:
    """Ids with rows filled up after their end, and whether all rows have ended."""
    if not stops:
        return ids, False
    ends = torch.isin(ids, torch.tensor(stops, device=ids.device))
    ends[:, :start] = False
    behind = ends.cumsum(-1) - ends.long() > 0
    return ids.masked_fill(behind, stops[0]), bool(ends.any(-1).all())

"""How heads are laid out in one axis of a tensor: pure functions, each with its inverse.

A `Layout` works for activations (`[batch, pos, out]`) and for weights (`[in, out]`), because both
have the heads in their last axis. `split` gives a view wherever the strides allow one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The part of the last axis of a tensor that has one role, such as the queries.

    Args:
        pattern: the layout as text, in einops notation.
        split: `[..., width]` -> `[..., n, d]` (or `[..., f]`): this part.
        assign: writes this part into a whole tensor, in place.
        whole: whether this part is the whole tensor.
    """

    pattern: str
    split: Callable[[Tensor], Tensor]
    assign: Callable[[Tensor, Tensor], object]
    whole: bool

    def merge(self, whole: Tensor, share: Tensor) -> Tensor:
        """A tensor like `whole` with this part replaced; `whole` itself does not change."""
        if self.whole:
            return share.reshape(whole.shape)
        merged = whole.clone()
        self.assign(merged, share)
        return merged


def plain() -> Layout:
    """The last axis unchanged."""
    return Layout("... m", lambda x: x, lambda x, share: x.copy_(share), whole=True)


def heads(n: int, d: int) -> Layout:
    """`n` heads side by side.

    Example:
        >>> heads(4, 8).split(torch.zeros(2, 3, 32)).shape
        torch.Size([2, 3, 4, 8])
    """

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], n, d)  # an axis can always be split without a copy

    return Layout("... (n d) -> ... n d", split, lambda x, s: split(x).copy_(s), whole=True)


def blocked(role: str, n_heads: int, n_kv: int, d: int, order: str = "qkv") -> Layout:
    """All queries, then all keys, then all values, or in another order.

    Example:
        >>> blocked("q", 4, 2, 8, order="kvq").split(torch.arange(64))[0, 0]
        tensor(32)
    """
    counts = {"q": n_heads, "k": n_kv, "v": n_kv}
    n, start = counts[role], d * sum(counts[one] for one in order[: order.index(role)])

    def split(x: Tensor) -> Tensor:
        return x.narrow(-1, start, n * d).view(*x.shape[:-1], n, d)

    pattern = f"... ({' '.join(order)}) -> {role}, ... (n d) -> ... n d"
    return Layout(pattern, split, lambda x, s: split(x).copy_(s), whole=False)


def grouped(role: str, n_heads: int, n_kv: int, d: int) -> Layout:
    """For each key/value head: its queries, its key, its value."""
    repeat = n_heads // n_kv

    def share(x: Tensor) -> Tensor:
        parts = x.view(*x.shape[:-1], n_kv, repeat + 2, d)
        if role == "q":
            return parts.narrow(-2, 0, repeat)
        return parts.select(-2, repeat if role == "k" else repeat + 1)

    def split(x: Tensor) -> Tensor:
        part = share(x)
        if role != "q":
            return part
        return part.select(-2, 0) if repeat == 1 else part.flatten(-3, -2)

    def assign(x: Tensor, value: Tensor) -> object:
        part = share(x)
        return part.copy_(value.unflatten(-2, (n_kv, repeat)) if role == "q" else value)

    return Layout(f"... (g (q k v) d) -> {role}, ... n d", split, assign, whole=False)


def sharded(role: str, n_heads: int, d: int) -> Layout:
    """Four shards side by side, each with its part of queries, then values, then keys (CodeGen).

    Heads follow one another through the shards, so that a head may be in two of them.
    """
    shards, slot = 4, {"q": 0, "v": 1, "k": 2}[role]

    def share(x: Tensor) -> Tensor:
        return x.unflatten(-1, (shards, 3, n_heads * d // shards)).select(-2, slot)

    def split(x: Tensor) -> Tensor:
        return share(x).flatten(-2).unflatten(-1, (n_heads, d))

    def assign(x: Tensor, value: Tensor) -> object:
        return share(x).copy_(value.flatten(-2).unflatten(-1, (shards, -1)))

    return Layout(f"... (s (q v k) w) -> {role}, ... n d", split, assign, whole=False)


def within_head(n: int, start: int, d: int, width: int, what: str) -> Layout:
    """`n` heads of `width`; this part is `d` of each, from `start` on."""

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], n, width).narrow(-1, start, d)

    return Layout(
        f"... (n ({what})) -> ... n d", split, lambda x, s: split(x).copy_(s), whole=False
    )


def half(first: bool, width: int, what: str) -> Layout:
    """One half of the last axis."""

    def split(x: Tensor) -> Tensor:
        return x.narrow(-1, 0 if first else width, width)

    return Layout(f"... ({what}) -> ... f", split, lambda x, s: split(x).copy_(s), whole=False)


def leading(d: int, what: str) -> Layout:
    """The first `d` of the last axis."""

    def split(x: Tensor) -> Tensor:
        return x.narrow(-1, 0, d)

    return Layout(f"... ({what}) -> ... l", split, lambda x, s: split(x).copy_(s), whole=False)


def heads_first() -> Layout:
    """`[b, h, p, d]` as `[b, p, h, d]`."""

    def split(x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    return Layout("b n p d -> b p n d", split, lambda x, s: split(x).copy_(s), whole=False)


def repeat_kv(x: Tensor, n_heads: int, axis: int) -> Tensor:
    """Key/value heads repeated to one for each query head.

    Example:
        >>> repeat_kv(torch.zeros(1, 2, 5, 8), 4, axis=1).shape
        torch.Size([1, 4, 5, 8])
    """
    repeat = n_heads // x.shape[axis]
    return x if repeat == 1 else x.repeat_interleave(repeat, axis)


def last_axis_is_output(weight: Tensor, transposed: bool) -> Tensor:
    """A projection's weight as `[in, out]`: a view of what is stored."""
    return weight if transposed else weight.mT


def per_head_in(weight: Tensor, layout: Layout) -> Tensor:
    """`[in, out]` of a q, k or v projection -> `[n, m, d]`, a view where the layout allows."""
    return torch.movedim(layout.split(weight), -2, 0)


def per_head_out(weight: Tensor, n: int) -> Tensor:
    """`[in, out]` of an output projection -> `[n, d, m]`, a view."""
    return weight.unflatten(0, (n, -1))

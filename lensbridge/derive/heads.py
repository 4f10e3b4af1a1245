"""Finds the projection of a kernel's q, k or v, its layout, and what happens between the two."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from lensbridge.derive.layer import Layer, NotEstablished, close, fitted_scale, is_projection
from lensbridge.derive.trace import TracedCall
from lensbridge.spec import FusedLayout, FusedOrder, QKNormAxes
from lensbridge.tensors import layouts

RoleName = Literal["q", "k", "v"]


@dataclass(frozen=True)
class Sizes:
    """Query heads, key/value heads, and the width of a head in q and k, and in v."""

    heads: int
    kv_heads: int
    d_qk: int
    d_v: int


@dataclass(frozen=True, eq=False)
class Given:
    """Where one operand of a kernel comes from.

    Args:
        projection: the call that computes it.
        layout: its layout in a shared projection; None: it has a projection of its own.
        order: the order of the three in a blocked layout.
        gated: whether its projection also has a gate after each head's query.
        norm: the norm between, with the axes of its input.
        rotated: whether positions other than the first were changed after it.
        factor: what it was multiplied by.
        absolute: whether a norm with a gain follows the rotation.
    """

    projection: TracedCall
    layout: FusedLayout | None = None
    order: FusedOrder = "qkv"
    gated: bool = False
    norm: TracedCall | None = None
    axes: QKNormAxes = "positions_first"
    rotated: bool = False
    factor: float = 1.0
    absolute: bool = False


def distinct_heads(operand: Tensor) -> Tensor:
    """Key/value heads without the repetition for grouped heads.

    Shapes: `[b, p, h, d]` -> `[b, p, g, d]`.
    """
    n = operand.shape[2]
    for g in (g for g in range(1, n) if n % g == 0):
        first = operand[:, :, :: n // g]
        if bool((first.repeat_interleave(n // g, 2) == operand).all()):
            return first
    return operand


def all_given(
    layer: Layer, role: RoleName, operand: Tensor, sizes: Sizes, before: int
) -> Iterator[Given]:
    """The projections that an operand may come from, in each layout that fits, nearest first.

    Shapes: operand `[b, p, n, d]`.
    """
    projections = [
        call
        for call in layer.calls
        if call.end < before and call.output is not None and is_projection(call.module)
    ]
    for call in reversed(projections):
        for part in _parts(layer, call, role, operand, sizes):
            found = _related(layer, role, call, part.share, operand, before)
            if found is not None:
                yield replace(found, layout=part.layout, order=part.order, gated=part.gated)


def consistent(qs: list[Given], ks: list[Given], vs: list[Given]) -> tuple[Given, Given, Given]:
    """A consistent choice of q, k and v: three projections, or one shared in one layout.

    Raises:
        NotEstablished: there is none.
    """
    for q, k, v in product(qs, ks, vs):
        split = q.layout is None and k.layout is None and v.layout is None
        alike = q.layout == k.layout == v.layout and q.order == k.order == v.order
        one = q.projection is k.projection is v.projection and alike
        if split or one:
            return q, k, v
    raise NotEstablished(
        f"'{qs[0].projection.path}', '{ks[0].projection.path}' and '{vs[0].projection.path}' have "
        "q, k and v in a layout that is not known"
    )


class _Part(NamedTuple):
    """The part of a projection's output that a role has in one layout."""

    share: Tensor
    layout: FusedLayout | None = None
    order: FusedOrder = "qkv"
    gated: bool = False


def _parts(
    layer: Layer, call: TracedCall, role: RoleName, operand: Tensor, sizes: Sizes
) -> Iterator[_Part]:
    """The part of a projection's output that a role has in each layout whose width fits."""
    output = call.output
    assert output is not None
    batch, positions, n, d = operand.shape
    if output.numel() % (batch * positions):
        return
    whole = layer.by_rows(output).reshape(batch, positions, -1)
    width = whole.shape[-1]
    if width == n * d:
        yield _Part(whole.unflatten(-1, (n, d)))
    if role == "q" and width == 2 * n * d:
        yield _Part(whole.unflatten(-1, (n, 2 * d))[..., :d], gated=True)
    h, g = sizes.heads, sizes.kv_heads
    if width == (h + 2 * g) * d and sizes.d_qk == sizes.d_v:
        yield _Part(layouts.blocked(role, h, g, d).split(whole), "blocked")
        yield _Part(layouts.grouped(role, h, g, d).split(whole), "grouped")
        if h == g and h % 4 == 0:
            yield _Part(layouts.sharded(role, h, d).split(whole), "sharded")
        for order in get_args(FusedOrder)[1:]:
            yield _Part(layouts.blocked(role, h, g, d, order).split(whole), "blocked", order)


def _related(
    layer: Layer, role: RoleName, call: TracedCall, share: Tensor, operand: Tensor, before: int
) -> Given | None:
    """How an operand is computed from a part: through a norm or not, rotated or not."""
    tolerance = layer.trace.tolerance

    def turned(one: Tensor, other: Tensor) -> Turn | None:
        found = same_but_rotated(one, other, tolerance)
        return None if found is not None and role == "v" and found.rotated else found

    turn = turned(share, operand)
    if turn is not None:
        return Given(call, rotated=turn.rotated, factor=turn.factor)
    for norm in layer.calls:
        if not (call.end < norm.start and norm.end < before and layer.is_leaf(norm)):
            continue
        for given, got, axes in _per_head(norm, share):
            if close(given, share, tolerance):
                turn = turned(got, operand)
                if turn is not None:
                    return Given(call, norm=norm, axes=axes, **vars(turn))
            elif close(got, operand, tolerance) and _is_rotated(turned(share, given)):
                gain = any(True for _ in norm.module.parameters())
                return Given(call, axes=axes, rotated=True, absolute=gain)
    return None


def _per_head(norm: TracedCall, share: Tensor) -> Iterator[tuple[Tensor, Tensor, QKNormAxes]]:
    """A norm's input and output as `[b, p, n, d]`, for each order of axes that is possible."""
    if not norm.inputs or norm.output is None or norm.output.numel() != share.numel():
        return
    given, got = norm.inputs[0], norm.output
    batch, positions, n, d = share.shape
    if given.shape != got.shape:
        return
    if given.shape == (batch, positions, n * d):
        yield given.reshape(share.shape), got.reshape(share.shape), "flat"
    if given.shape == share.shape:
        yield given, got, "positions_first"
    if given.shape == (batch, n, positions, d):
        yield given.transpose(1, 2), got.transpose(1, 2), "heads_first"


@dataclass(frozen=True)
class Turn:
    """How an operand differs from a part: whether it is rotated by position, and its factor."""

    rotated: bool
    factor: float


def _is_rotated(turn: Turn | None) -> bool:
    return turn is not None and turn.rotated


def same_but_rotated(share: Tensor, operand: Tensor, tolerance: float) -> Turn | None:
    """Whether an operand is the part times a factor, or also rotated by position; None: neither.

    A rotation leaves the first position as it is and keeps the length of each head.

    Shapes: both `[b, p, n, d]`.
    """
    if share.shape != operand.shape:
        return None
    factor = fitted_scale(share, operand, tolerance)
    if factor is not None:
        return Turn(False, factor) if factor > 0 else None
    first = fitted_scale(share[:, 0], operand[:, 0], tolerance)
    lengths = fitted_scale(share.norm(dim=-1), operand.norm(dim=-1), 10 * tolerance)
    return None if first is None or lengths is None or first <= 0 else Turn(True, first)

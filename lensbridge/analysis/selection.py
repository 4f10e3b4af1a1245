"""Selection: which tokens of each row of logits are reported."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.readout import Selected, Targets
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.tokens import as_tensor


@dataclass(frozen=True)
class Selection:
    """Which tokens of each row are kept: `ids` of targets `[row, n]`, or of a vocabulary `[n]`."""

    kind: Selected
    k: int = 0
    ids: Tensor | None = None
    shared: Tensor | None = None

    @property
    def width(self) -> int:
        """How many tokens of each row are kept; 0 for all."""
        return self.k if self.ids is None else self.ids.shape[-1]


def selection_of(
    model: HookedModel,
    shape: tuple[int, ...],
    targets: Targets | None,
    top_k: int | None,
    vocab: Sequence[int] | Tensor | None,
) -> Selection:
    """The selection that was asked for, checked against the vocabulary."""
    given = {"targets": targets, "top_k": top_k, "vocab": vocab}
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise InputError(f"Pass one of targets, top_k and vocab, not {' and '.join(asked)}.")
    size = model.cfg.d_vocab_out
    if top_k is not None:
        if not is_whole(top_k) or not 0 < top_k <= size:
            raise InputError(f"top_k is 1 to {size}, the size of the vocabulary, not {top_k!r}.")
        return Selection("top_k", k=top_k)
    if vocab is not None:
        ids = _checked(as_tensor(vocab).reshape(-1), size)
        return Selection("vocab", ids=ids)
    if targets is None:
        return Selection("all")
    if isinstance(targets, Tensor) and targets.ndim:
        return Selection("targets", ids=_per_row(_checked(targets, size), shape))
    shared = _checked(token_ids(model, targets), size)
    rows = shared.expand(torch.Size(shape).numel(), -1)
    return Selection("targets", ids=rows, shared=shared)


def token_ids(model: HookedModel, given: Targets) -> Tensor:
    """Ids of single tokens that were given as text or ids.

    Shapes: `[token]`

    Raises:
        TokenError: a text that is not one token.
    """
    alone = isinstance(given, str) or not isinstance(given, Iterable) or is_whole(given)
    several: list[Any] = [given] if alone else list(given)  # type: ignore[arg-type]
    if not all(isinstance(one, str) or is_whole(one) for one in several):
        raise InputError(
            f"Targets are single tokens, as text or ids, one or a list of them, not {given!r}."
        )
    return torch.tensor(
        [model.to_single_token(t) if isinstance(t, str) else int(t) for t in several],
        dtype=None if several else torch.long,
    )


def is_whole(value: Any) -> bool:
    """Whether something is a whole number; a tensor may hold it."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _checked(ids: Tensor, size: int) -> Tensor:
    if ids.numel() == 0:
        raise InputError("targets or vocab is empty: pass at least one token.")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"Ids are whole numbers, not {ids.dtype} of shape {list(ids.shape)}.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise InputError(f"Ids are 0 to {size - 1}; the ids passed are from {low} to {high}.")
    return ids.long()


def _per_row(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return ids.broadcast_to(shape).reshape(-1, 1)
    except RuntimeError as error:
        raise InputError(
            f"A tensor of targets has one id for each vector, {list(shape)}, not "
            f"{list(ids.shape)}. For the same targets everywhere, pass a list."
        ) from error

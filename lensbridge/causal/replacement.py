"""Replacement: where the values of ablated parts come from."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.causal.pair import check_aligned, padding_of
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel

AblationMode = Literal["corrupt", "mean", "zero", "resample"]
"""What takes the place of a part: its value in the corrupted run; its mean over the examples of a
reference, position by position; nothing; its value in some example of a reference, drawn anew for
each example."""


@dataclass(frozen=True)
class Replacement:
    """Where the values of ablated parts come from.

    Args:
        mode: how.
        source: the input whose run they come from.
        drawn: which of its examples each example gets, for "resample".
    """

    mode: AblationMode
    source: Any
    drawn: Tensor | None = None

    @classmethod
    def of(
        cls,
        model: HookedModel,
        clean: Any,
        corrupt: Any,
        mode: AblationMode,
        reference: Any,
        seed: int,
    ) -> "Replacement":
        """A replacement, checked.

        Raises:
            InputError: an unknown mode, a reference of another length, or one that is missing.
        """
        if mode not in ("corrupt", "mean", "zero", "resample"):
            raise InputError(f"ablation is 'corrupt', 'mean', 'zero' or 'resample', not {mode!r}.")
        check_aligned(model, clean, corrupt)
        if mode in ("corrupt", "zero"):
            if reference is not None:
                raise InputError(f"ablation={mode!r} uses no reference; 'mean' and 'resample' do.")
            return cls(mode, corrupt)
        if reference is None:
            raise InputError(
                f"ablation={mode!r} takes its values from examples: pass reference=..., inputs of "
                "the same length."
            )
        rows, given = _sizes(model, clean, reference)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(given, (rows,), generator=generator)
        return cls(mode, reference, drawn if mode == "resample" else None)

    def take(self, value: Tensor, axis: int = 0) -> Tensor:
        """What the run's examples come to, along the axis of examples."""
        if self.mode == "mean":
            return value.mean(axis, keepdim=True)
        if self.mode == "zero":
            return torch.zeros_like(value)
        drawn = self.drawn
        return value if drawn is None else value.index_select(axis, drawn.to(value.device))


def _sizes(model: HookedModel, clean: Any, reference: Any) -> tuple[int, int]:
    """How many examples an input and a reference have.

    Raises:
        InputError: their positions do not lie over each other.
    """
    rows, given = (model.prepare(one) for one in (clean, reference))
    if rows.tokens is None or given.tokens is None:
        raise InputError("'mean' and 'resample' take an input and a reference of ids or text.")
    lengths = rows.tokens.shape[1], given.tokens.shape[1]
    if lengths[0] != lengths[1]:
        raise InputError(
            f"The reference has {lengths[1]} positions and the input {lengths[0]}: it has to have "
            "as many for each row."
        )
    masks = [one for one in map(padding_of, (rows, given)) if one is not None]
    if any(bool((one != masks[0][:1]).any()) for one in masks):
        raise InputError(
            "Rows of the reference or the input are padded at different places, so what stands at "
            "a position of one cannot take the place of another's. Use rows of equal length."
        )
    return len(rows.tokens), len(given.tokens)

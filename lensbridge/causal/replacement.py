"""Replacement: the values that ablated parts get."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.causal.pair import check_aligned, padding_of
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel

AblationMode = Literal["corrupt", "mean", "zero", "resample"]
"""What replaces the value of an ablated part. corrupt: its value in the corrupted run. mean: its
mean over the examples of a reference, at each position. zero: zeros. resample: its value in an
example of a reference, drawn for each example."""


@dataclass(frozen=True)
class Replacement:
    """The values that ablated parts get.

    Args:
        mode: which values.
        source: the input whose run has them.
        drawn: which example of the source each example gets, for "resample".
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
        """A replacement, after checks.

        Raises:
            InputError: an unknown mode, or a reference that is missing or of another length.
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
                f"ablation={mode!r} needs examples to take values from: pass reference=..., inputs "
                "of the same length."
            )
        rows, given = _sizes(model, clean, reference)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(given, (rows,), generator=generator)
        return cls(mode, reference, drawn if mode == "resample" else None)

    def take(self, value: Tensor, axis: int = 0) -> Tensor:
        """The replacement for each example of the run, along the axis of examples."""
        if self.mode == "mean":
            return value.mean(axis, keepdim=True)
        if self.mode == "zero":
            return torch.zeros_like(value)
        drawn = self.drawn
        return value if drawn is None else value.index_select(axis, drawn.to(value.device))


def _sizes(model: HookedModel, clean: Any, reference: Any) -> tuple[int, int]:
    """How many examples an input and a reference have.

    Raises:
        InputError: their positions do not correspond.
    """
    rows, given = (model.prepare(one) for one in (clean, reference))
    if rows.tokens is None or given.tokens is None:
        raise InputError("'mean' and 'resample' need an input and a reference of ids or text.")
    lengths = rows.tokens.shape[1], given.tokens.shape[1]
    if lengths[0] != lengths[1]:
        raise InputError(
            f"The reference has {lengths[1]} positions and the input {lengths[0]}: pass a "
            "reference of the same length."
        )
    masks = [one for one in map(padding_of, (rows, given)) if one is not None]
    if any(bool((one != masks[0][:1]).any()) for one in masks):
        raise InputError(
            "The rows of the reference and the input have different padding, so their positions do "
            "not correspond. Use rows of equal length."
        )
    return len(rows.tokens), len(given.tokens)

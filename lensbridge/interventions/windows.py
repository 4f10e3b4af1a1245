"""The window of one pass: which rows and columns of the texts a value at a point has."""

from dataclasses import replace

from torch import Tensor

from lensbridge.hooks.progress import Progress
from lensbridge.inputs.positions import ColumnOwner
from lensbridge.interventions.axis import Axes
from lensbridge.interventions.columns import Window
from lensbridge.interventions.region import Place


def whole_window(
    axes: Axes,
    value: Tensor,
    mask: Tensor | None,
    keys_mask: Tensor | None = None,
    special: Tensor | None = None,
) -> Window:
    """The window of a pass that computes every column of a point.

    Args:
        axes: of the point.
        value: at the point.
        mask: which columns are tokens, `[batch, column]`; None: all.
        keys_mask: which columns of another text, that keys name, are tokens.
        special: which columns are special tokens.
    """
    rows = 1 if axes.batch is None else value.shape[axes.batch]
    size = 1 if axes.position is None else value.shape[axes.position]
    return _known(Window(rows, 0, size, size), mask, keys_mask, special)


def window_of(
    place: Place, owner: ColumnOwner, value: Tensor, progress: Progress, special: Tensor | None
) -> Window:
    """The window of a pass, which may have only the newest columns of a text.

    Args:
        place: the point.
        owner: what its columns belong to.
        value: at the point in this pass.
        progress: of the run.
        special: which columns of the pass are special tokens.
    """
    axes = place.axes
    every = whole_window(axes, value, None)
    rows, size = every.rows, every.end
    total = progress.past + progress.count
    apart = owner in ("encoder", "tower") or not axes.has_batch or axes.position is None
    if not progress.past and size != total and place.name != "hook_logits":
        apart = True  # a decoder that makes its own ids, pictures in the text
    keys_mask = progress.mask(encoder=True) if place.looks_elsewhere else None
    if apart or total < size:
        mask = progress.mask(encoder=True) if owner == "encoder" else None
        return whole_window(axes, value, mask, keys_mask, special)
    several = progress.examples is not None and rows % progress.examples == 0
    examples = progress.examples if several else None
    window = Window(rows, total - size, total, progress.prompt, examples=examples)
    return _known(window, progress.mask(), keys_mask, special)


def _known(
    window: Window, mask: Tensor | None, keys_mask: Tensor | None, special: Tensor | None
) -> Window:
    """A window with what is known of its rows and columns."""
    fits = special is not None and special.shape == (window.rows, window.end - window.start)
    return replace(
        window,
        mask=_of_rows(mask, window.rows),
        keys_mask=_of_rows(keys_mask, window.rows),
        special=special if fits else None,
    )


def _of_rows(mask: Tensor | None, rows: int) -> Tensor | None:
    """A mask, if it is of the rows of a value."""
    return mask if mask is not None and len(mask) == rows else None

"""A grid of numbers as a small PNG, a pixel for each cell, on any background."""

from base64 import b64encode
from io import BytesIO
from typing import Any

from lensbridge.viz.scale import Scale
from lensbridge.viz.theme import MINUS, PLUS

LEVELS = 127


def data_uri(values: Any, scale: Scale, most: int | None = None) -> str:
    """A numpy array `[row, column]` as an image that an `href` can hold.

    Args:
        values: the numbers; one that is not finite is a pixel without colour.
        scale: the colours; a pixel is more transparent the smaller its value.
        most: pixels along a side; of several cells in a pixel the largest is drawn.
    """
    import numpy as np
    from PIL import Image

    shown = values if most is None else pooled(values, most)
    strength = np.clip(np.nan_to_num(shown, posinf=0.0, neginf=0.0) / scale.limit, -1, 1)
    image = Image.fromarray((np.rint(strength * LEVELS) + LEVELS).astype(np.uint8))
    image.putpalette(_rgb(MINUS) * LEVELS + _rgb(PLUS) * (LEVELS + 1))  # makes it mode "P"
    alphas = bytes(round(abs(i - LEVELS) / LEVELS * 255) for i in range(2 * LEVELS + 1))
    with BytesIO() as file:
        image.save(file, "PNG", transparency=alphas, optimize=True)
        return "data:image/png;base64," + b64encode(file.getvalue()).decode("ascii")


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def pooled(values: Any, most: int) -> Any:
    """The largest value by size of each square of cells."""
    import numpy as np

    rows, columns = values.shape
    factor = -(-max(rows, columns) // most)
    if factor <= 1:
        return values
    wide = [(0, -size % factor) for size in values.shape]
    filled = np.pad(np.nan_to_num(values, posinf=0.0, neginf=0.0), wide)
    squares = filled.reshape(filled.shape[0] // factor, factor, -1, factor).swapaxes(1, 2)
    flat = squares.reshape(*squares.shape[:2], -1)
    largest = np.abs(flat).argmax(-1)
    return np.take_along_axis(flat, largest[..., None], -1)[..., 0]

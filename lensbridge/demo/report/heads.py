"""Names of heads, and a heatmap of them."""

from lensbridge.viz import Heatmap, Html, Scale


def head_name(at: tuple[int, int]) -> str:
    """A head by layer and number.

    Example:
        >>> head_name((3, 1))
        'L3H1'
    """
    return f"L{at[0]}H{at[1]}"


def head_grid(values: list[list[float]], scale: Scale, top: tuple[int, int]) -> Html:
    """A number for each head, layers from top to bottom, the top head framed."""
    return Heatmap(
        title="",
        values=values,
        rows=list(map(str, range(len(values)))),
        columns=list(map(str, range(len(values[0])))),
        scale=scale,
        axes=("layer", "head"),
        marked=[top],
    ).svg()

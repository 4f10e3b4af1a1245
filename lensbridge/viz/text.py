"""text: tokens coloured by numbers, one text or several for comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from lensbridge.errors import InputError
from lensbridge.viz.attention import array_of
from lensbridge.viz.panels import Panels
from lensbridge.viz.scale import Scale
from lensbridge.viz.tokens import ColouredText


def text(
    tokens: Sequence[str] | Mapping[str, Sequence[str]],
    values: Any,
    *,
    title: str = "",
    unit: str = "",
    marked: Sequence[int] = (),
) -> ColouredText | Panels:
    """Draw tokens on the colours of numbers: losses, activations, attributions.

    Args:
        tokens: the tokens as text; for several texts of different tokens a mapping from names.
        values: a number for each token; or a mapping from names to such numbers, which are drawn
            below each other on one scale: a base run and a patched one.
        title: written above it.
        unit: what is measured.
        marked: tokens to frame.

    Raises:
        InputError: another number of values than of tokens, or values that are not finite.

    Example:
        >>> runs = {"base": [0.1, 0.9], "patched": [0.1, 0.2]}
        >>> text(["The", " cat"], runs)
        Panels('', 670 x 168 pixels)
    """
    if not isinstance(values, Mapping):
        if isinstance(tokens, Mapping):
            raise InputError("tokens has names, so values needs the same names.")
        numbers = _numbers(values, tokens, "")
        return ColouredText(title, list(map(str, tokens)), numbers, unit=unit, marked=marked)
    rows = {name: _tokens(tokens, name) for name in values}
    lines = {name: _numbers(given, rows[name], name) for name, given in values.items()}
    if not lines:
        raise InputError("There are no values to draw.")
    scale = Scale.fitting([*lines.values()], unit=unit)
    last = list(lines)[-1]
    pictures = [
        ColouredText(name, rows[name], line, scale, unit, marked, explained=name == last)
        for name, line in lines.items()
    ]
    return Panels(title, pictures, columns=1)


def _tokens(tokens: Sequence[str] | Mapping[str, Sequence[str]], name: str) -> list[str]:
    if not isinstance(tokens, Mapping):
        return list(map(str, tokens))
    if name not in tokens:
        raise InputError(f"There are tokens for {', '.join(map(repr, tokens))}, not for {name!r}.")
    return list(map(str, tokens[name]))


def _numbers(values: Any, tokens: Sequence[str], name: str) -> list[float]:
    if isinstance(tokens, str):
        raise InputError(
            "tokens is a list with the text of each token, not one text: write "
            "model.to_str_tokens(text)."
        )
    numbers: list[float] = array_of(values).reshape(-1).tolist()
    of = f" of {name!r}" if name else ""
    if len(numbers) != len(tokens):
        raise InputError(f"There are {len(numbers)} values{of} for {len(tokens)} tokens.")
    wrong = sum(not abs(value) < float("inf") for value in numbers)
    if wrong:
        raise InputError(f"{wrong} of {len(numbers)} values{of} are not finite numbers.")
    return numbers

"""Numbers as text, with a true minus sign and no sign before zero."""

from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"


def rounded(value: float, digits: int) -> str:
    """A number with a number of decimals.

    Example:
        >>> rounded(-0.001, 2), rounded(-1.5, 1) == MINUS + "1.5"
        ('0.00', True)
    """
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float, digits: int) -> str:
    """The same, with a plus sign before positive numbers.

    Example:
        >>> signed(1.25, 1), signed(0.001, 1)
        ('+1.2', '0.0')
    """
    text = rounded(value, digits)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def short(value: float) -> str:
    """A number with three significant digits.

    Example:
        >>> short(0.5), short(1.0)
        ('0.5', '1')
    """
    return f"{value:.3g}".replace("-", MINUS)


def bytes_as_text(count: int) -> str:
    """A number of bytes with three significant digits and a unit.

    Example:
        >>> bytes_as_text(512), bytes_as_text(36_864), bytes_as_text(4_600_000)
        ('512 B', '36.9 kB', '4.6 MB')
    """
    return _with_unit(count, (" B", " kB", " MB", " GB", " TB", " PB"))


def count_as_text(count: int) -> str:
    """A count with three significant digits, in thousands, millions or billions.

    Example:
        >>> count_as_text(512), count_as_text(124_439_808)
        ('512', '124 M')
    """
    return _with_unit(count, ("", " K", " M", " B"))


def _with_unit(count: int, units: Sequence[str]) -> str:
    """A count in the unit in which it has at most three digits before the point."""
    if count < 1000:
        return f"{count}{units[0]}"
    power = 1
    while float(f"{count / 1000**power:.3g}") >= 1000 and power < len(units) - 1:
        power += 1
    return f"{count / 1000**power:.3g}{units[power]}"

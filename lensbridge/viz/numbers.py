"""Numbers as text, with a true minus sign and no sign before zero."""

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

"""How a run fails if a description does not fit, and what a report says of it."""

import re

from lensbridge.errors import LensbridgeError

RUN_ERRORS = (
    LensbridgeError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)
"""What a run can raise if a description does not fit."""


def told(error: BaseException) -> str:
    """The text of an error in a report."""
    if isinstance(error, LensbridgeError):
        return str(error)
    reason = _plain(str(error).partition("\n")[0].removeprefix("einsum(): ").rstrip(". "))
    because = f" ({reason})" if reason else ""
    return (
        f"it cannot be computed with the sizes and the parts that the description names{because}."
    )


_SIZES = (
    (r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", "sizes {} and {}"),
    (r"size of the tensor \((\d+)\) must match the existing size \((\d+)\)", "sizes {} and {}"),
    (r"subscript \w has size (\d+) .* previously seen size (\d+)", "sizes {} and {}"),
    (r"Expected size (\d+) but got size (\d+)", "sizes {} and {}"),
    (r"mat1 and mat2 shapes cannot be multiplied \((\w+) and (\w+)\)", "matrices {} and {}"),
    (r"shape of the mask (\[.*?\]) .* indexed tensor (\[.*?\])", "shapes {} and {}"),
    (r"expected input with shape (\[.*?\]), but got input of size(\[.*?\])", "shapes {} and {}"),
    (r"shape '(\[.*?\])' is invalid for input of size (\d+)", "the shape {} and {} numbers"),
    (r"index (\d+) is out of bounds for dimension \d+ with size (\d+)", "index {} and {} places"),
    (r"(?i)\b(?:size|shape)s?\b", "two sizes"),
)
"""What torch says of two sizes, and how to say it."""


def _plain(reason: str) -> str:
    """What torch says of two sizes in plain words; another reason as it is."""
    for pattern, words in _SIZES:
        if found := re.search(pattern, reason):
            return f"{words.format(*found.groups())} do not fit together"
    return reason

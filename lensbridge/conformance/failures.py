"""How a run fails if a description does not fit, and what a report says of it."""

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
    reason = str(error).partition("\n")[0].removeprefix("einsum(): ").rstrip(". ")
    because = f" ({reason})" if reason else ""
    return (
        f"it cannot be computed with the sizes and the parts that the description names{because}."
    )

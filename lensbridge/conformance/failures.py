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
    own = isinstance(error, LensbridgeError)
    return str(error) if own else f"{type(error).__name__}: {error}"

"""Refusals: questions that are not answered, and how errors are told."""

from logging import getLogger

from lensbridge.errors import LensbridgeError, RemoteError
from lensbridge.serve.worker import Busy, Cancelled


class Refused(LensbridgeError):  # noqa: N818
    """A question that is not answered.

    Args:
        status: the HTTP status that says why.
        message: the same in words.
        kind: the error that a client raises.
    """

    def __init__(
        self, status: int, message: str, kind: type[LensbridgeError] = RemoteError
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def explained(error: Exception) -> tuple[int, str]:
    """The status and message of an error. What lensbridge raises is told as it is."""
    if isinstance(error, Refused):
        return error.status, str(error)
    if isinstance(error, Cancelled):
        return 409, str(error)
    if isinstance(error, Busy):
        return 503, str(error)
    if isinstance(error, LensbridgeError):
        return 422, str(error)
    getLogger(__name__).exception("A question could not be answered.")
    return 500, f"Something went wrong in the server: {type(error).__name__}. Its log says more."

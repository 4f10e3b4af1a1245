"""Limits: how much one request to a server may ask for."""

from dataclasses import dataclass, fields

from lensbridge.errors import InputError


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for, and how many requests there may be.

    Args:
        max_tokens: tokens of an input, padding included, all rows together; for `generate` with the
            new ones.
        max_new_tokens: tokens that are generated for each row.
        max_cells: cells of a sweep.
        max_sweep_tokens: cells of a sweep times the tokens of its input.
        max_body: bytes of a request.
        max_reply: bytes of the tensors of a reply.
        max_run: bytes that a run may hold at its peak beside the weights, as its plan says.
        max_tensors: tensors of a request.
        max_seconds: seconds that a request may run; time in the queue does not count.
        max_waiting: requests that run or wait at the same time.
        max_begun: requests that are begun and take turns; the others wait.

    Raises:
        InputError: a limit below 1.
    """

    max_tokens: int = 16_384
    max_new_tokens: int = 1024
    max_cells: int = 20_000
    max_sweep_tokens: int = 20_000_000
    max_body: int = 64 * 1024**2
    max_reply: int = 256 * 1024**2
    max_run: int = 8 * 1024**3
    max_tensors: int = 4096
    max_seconds: int = 300
    max_waiting: int = 64
    max_begun: int = 4

    def __post_init__(self) -> None:
        for one in fields(self):
            require_whole(one.name, getattr(self, one.name))


def require_whole(name: str, value: object) -> None:
    """Refuse what is no limit.

    Raises:
        InputError: a value that is no whole number from 1 on.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is a whole number from 1 on, not {value!r}.")

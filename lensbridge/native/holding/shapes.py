"""A mode in which weights are read for their shapes alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_only: ContextVar[bool] = ContextVar("shapes only", default=False)


def reads_shapes() -> bool:
    """Whether `read` gives tensors without values."""
    return _only.get()


@contextmanager
def shapes_only(on: bool = True) -> Iterator[None]:
    """Until it ends, `read` gives tensors on the meta device: nothing is fetched or gathered.

    Args:
        on: False reads values again inside.
    """
    token = _only.set(on)
    try:
        yield
    finally:
        _only.reset(token)

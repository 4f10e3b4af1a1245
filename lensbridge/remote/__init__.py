"""A model on a server of one's own: `lensbridge serve MODEL --api` there, and here

remote = lensbridge.connect("http://127.0.0.1:8765", token="...")
logits, cache = remote.run_with_cache("The Eiffel Tower is in the city of")

Requests and replies are JSON and safetensors (the protocol `lensbridge.remote/1`). No code is sent:
interventions and metrics are data.
"""

from typing import TYPE_CHECKING, Any

from lensbridge.remote.limits import Limits
from lensbridge.remote.protocol import PROTOCOL

if TYPE_CHECKING:
    from lensbridge.remote.model import RemoteModel

__all__ = ["PROTOCOL", "Limits", "RemoteModel", "connect"]


def connect(url: str, token: str | None = None, timeout: float | None = None) -> "RemoteModel":
    """A model that `lensbridge serve MODEL --api` serves.

    Args:
        url: the address that the server printed.
        token: its secret.
        timeout: seconds in which the server has to send something; None: any number.

    Raises:
        RemoteError: the server is not reached, or is none of lensbridge.
        InputError: the address is none.
    """
    from lensbridge.remote.connection import Connection
    from lensbridge.remote.model import RemoteModel

    return RemoteModel(Connection(url, token, timeout))


def __getattr__(name: str) -> Any:
    """Import what is large when it is first used: whoever serves a page needs only the limits."""
    if name != "RemoteModel":
        raise AttributeError(f"module 'lensbridge.remote' has no attribute {name!r}.")
    from lensbridge.remote.model import RemoteModel

    return RemoteModel

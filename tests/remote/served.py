"""A model that is served from a thread of this process, and clients of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import httpx
import uvicorn
from serve.site import until

import lensbridge
from lensbridge.model import LensModel
from lensbridge.remote import Limits, RemoteModel
from lensbridge.remote.protocol import JSON, SAFETENSORS
from lensbridge.serve import make_api
from lensbridge.serve.server import listening_at

TOKEN = "a-token"
EIFFEL = "The Eiffel Tower is in the city of"
ROME = "The Colosseum is in the city of"


@dataclass(frozen=True)
class Served:
    """A served model."""

    url: str
    app: Any

    def connect(self) -> RemoteModel:
        """A client."""
        return lensbridge.connect(self.url, TOKEN)

    def post(self, operation: str, document: Any = None, **options: Any) -> httpx.Response:
        """A request as any program may send it: JSON, or `content` as it is."""
        headers = {"Authorization": f"Bearer {TOKEN}", **options.pop("headers", {})}
        url = f"{self.url}/v1/{operation}"
        if "content" in options:
            headers = {"Content-Type": SAFETENSORS, **headers}
            return httpx.post(url, headers=headers, timeout=60, **options)
        headers = {"Content-Type": JSON, **headers}
        return httpx.post(url, json=document, headers=headers, timeout=60, **options)


@contextmanager
def served(model: LensModel, limits: Limits | None = None, **options: Any) -> Iterator[Served]:
    """Serve a model while the block runs."""
    app = make_api(model, options.pop("token", TOKEN), limits, **options)
    with serving_app(app) as url:
        yield Served(url, app)


@contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """Serve an application while the block runs, at an address."""
    with listening_at("127.0.0.1", 0) as listening:
        config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()

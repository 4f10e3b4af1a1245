"""A page that is served from a thread, and someone who asks it."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import httpx
import uvicorn

from lensbridge.model import LensModel
from lensbridge.serve import Limits, make_app

TOKEN = "a-token"
EIFFEL = "The Eiffel Tower is in the city of"
GALATA = "The Galata Tower is in the city of"


@dataclass(frozen=True)
class Site:
    """A page, and questions to it from one tab."""

    port: int
    tab: str = "a tab"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}", "Lensbridge-Tab": self.tab, **more}

    def post(self, view: str, **question: Any) -> httpx.Response:
        address = f"{self.url}/api/{view}"
        return httpx.post(address, json=question, headers=self.headers(), timeout=60)

    def ask(self, view: str, **question: Any) -> dict[str, Any]:
        """The answer of a view."""
        response = self.post(view, **question)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, view: str, **question: Any) -> list[dict[str, Any]]:
        """The events of a view that gives several."""
        response = self.post(view, **question)
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def refusal(self, view: str, status: int = 422, **question: Any) -> str:
        """The message of a question that is refused."""
        response = self.post(view, **question)
        assert response.status_code == status, response.text
        return response.json()["message"]


@contextmanager
def serving(
    model: LensModel, load: str | None = None, limits: Limits | None = None
) -> Iterator[Site]:
    """Serve a model while the block runs."""
    app = make_app(model, TOKEN, load, limits)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Site(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def until(holds: Any, seconds: float = 20) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.01)


def whole(events: list[dict[str, Any]]) -> list[float]:
    """The values of all cells of a heatmap."""
    assert events[0]["type"] == "start"
    assert events[-1]["type"] == "end"
    return [value for event in events if event["type"] == "cells" for value in event["values"]]


def written(events: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The generated tokens of each side."""
    found: dict[str, list[str]] = {"plain": [], "steered": []}
    for event in events:
        if event["type"] == "text":
            found[event["side"]] += event["labels"]
    return found

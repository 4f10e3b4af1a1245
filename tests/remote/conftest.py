"""The demo model, here and behind a server."""

from collections.abc import Iterator

import pytest
from remote.served import Served, served

import lensbridge
from lensbridge.model import LensModel
from lensbridge.remote import RemoteModel


@pytest.fixture(scope="session")
def model() -> LensModel:
    return lensbridge.load("demo")


@pytest.fixture(scope="session")
def server(model: LensModel) -> Iterator[Served]:
    with served(model, name="demo") as found:
        yield found


@pytest.fixture(scope="session")
def remote(server: Served) -> Iterator[RemoteModel]:
    with server.connect() as found:
        yield found

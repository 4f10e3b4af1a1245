"""The page of the demo model, served from a thread of this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve.site import Site, serving

import lensbridge
from lensbridge.model import LensModel

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def model() -> LensModel:
    return lensbridge.load("demo")


@pytest.fixture(scope="session")
def site(model: LensModel) -> Iterator[Site]:
    with serving(model, load="demo") as found:
        yield found

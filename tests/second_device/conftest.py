"""Checks on a second device; `tests/test_second_device.py` runs them in a process of their own."""

from collections.abc import Iterator

import pytest
from second_device.device import SecondDevice, register

KNOWN = register()


@pytest.fixture(autouse=True)
def second_device() -> Iterator[None]:
    if not KNOWN:
        pytest.skip("this PyTorch takes no backend that is written in Python")
    with SecondDevice():
        yield

"""Offline, on the CPU, two threads or processes; hypothesis without deadlines (machines differ)."""

import os
import sys
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.pop("COLUMNS", None)  # set by pytest's own processes; tests choose the width they need

import pytest
import torch
from chromium import launched
from hypothesis import HealthCheck, Phase, settings

# Its conftest makes a device known, which the process keeps: it is only for who asks for it.
collect_ignore = [] if any("second_device" in one for one in sys.argv) else ["second_device"]

settings.register_profile(
    "lensbridge",
    deadline=None,
    max_examples=8,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shapes are small already: no need to shrink them
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lensbridge")
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules whose models are so small that they run slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser, for tests that are marked so."""
    with launched() as found:
        yield found

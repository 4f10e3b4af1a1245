"""A server in a process of its own under all kinds of requests, for as long as a test may take."""

import pytest
from remote.soak import growth, soak

pytestmark = pytest.mark.engines


def test_nothing_is_lost_and_memory_does_not_run_away() -> None:
    counts, memory = soak(25, clients=6, pause=0.05)
    assert counts.wrong == []
    assert counts.sent == counts.done
    assert {"good", "bad", "huge", "cancelled"} == set(counts.sent)
    assert growth(memory) < 80  # allocators fill up at first; make soak waits until they have

"""The peers that run here are the ones that are pinned."""

from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.peers
PINS = Path(__file__).parents[2] / "constraints-peers.txt"


def pins() -> list[tuple[str, str]]:
    lines = [line.partition(";")[0].strip() for line in PINS.read_text().splitlines()]
    found = [line.split("==") for line in lines if "==" in line]
    return [(name, wanted) for name, wanted in found if name not in ("datasets", "pandas")]


@pytest.mark.parametrize(("name", "wanted"), pins())
def test_a_peer_is_the_one_that_is_pinned(name: str, wanted: str) -> None:
    assert version(name) == wanted

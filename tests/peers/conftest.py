"""Tests beside the field's other tools: `make peers` installs those and runs what is here.

Where the tools are missing nothing here is collected. They warn, and that is their business; what
lensbridge warns of is an error here too.
"""

import warnings
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PEERS = ("transformer_lens", "sae_lens", "nnsight", "pyvene", "steering_vectors")

# texts that a test runs under either import, and the plugin with which another suite is run
collect_ignore_glob = ["notebooks/*", "rival_*.py"]

if any(find_spec(peer) is None for peer in PEERS):
    collect_ignore_glob = ["*.py"]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: Any) -> Generator[None, Any, Any]:
    """Importing a peer may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here, before `-m` chooses."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("peers")
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.filterwarnings("error:::lensbridge"))

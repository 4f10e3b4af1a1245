"""Tests with quantization libraries: `make quantized` installs those and runs what is here.

Where the libraries are missing nothing here is collected. They warn, and that is their business.
"""

import warnings
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

import pytest

LIBRARIES = ("bitsandbytes", "torchao", "optimum", "hqq", "compressed_tensors", "gptqmodel")

collect_ignore_glob: list[str] = []

if any(find_spec(library) is None for library in LIBRARIES):
    collect_ignore_glob = ["*.py"]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: Any) -> Generator[None, Any, Any]:
    """Importing a library may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (yield)

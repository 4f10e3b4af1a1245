"""The coverage page: what is written there is what a sample of the model types gives now."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

ROOT = Path(__file__).parents[1]
SAMPLE = (
    "causal language models/gpt2",
    "causal language models/olmo2",
    "causal language models/mixtral",
    "causal language models/mamba",
    "causal language models/emu3",
    "causal language models/zaya",
    "causal language models/xlm",
    "encoders/modernbert",
    "encoder-decoders/mbart",
    "vision/dinov2",
    "two towers/siglip",
)
"""Built in, derived in full and in part, and refused."""


@pytest.fixture(scope="module")
def coverage() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("coverage_page", ROOT / "docs" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage_page"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


def recorded_with_this_transformers(coverage: ModuleType) -> bool:
    return f"transformers {transformers.__version__}" in coverage.PAGE.read_text()


def test_the_page_is_up_to_date(coverage: ModuleType) -> None:
    if not recorded_with_this_transformers(coverage):
        pytest.skip("the page was written with another release of transformers")
    assert coverage.outdated() == []


@pytest.mark.parametrize("key", SAMPLE)
def test_a_model_type_is_as_recorded(coverage: ModuleType, key: str) -> None:
    if not recorded_with_this_transformers(coverage):
        pytest.skip("the page was written with another release of transformers")
    kind = next(one for one in coverage.kinds() if one.key == key)
    found: dict[str, Any] = coverage.record(kind)
    recorded: dict[str, Any] = coverage.load_record()[key]
    for field in ("class", "how", "architecture", "points", "count", "conforms"):
        assert found.get(field) == recorded.get(field), field

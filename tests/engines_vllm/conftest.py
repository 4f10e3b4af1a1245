"""Models of `vllm_models`, made once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

for name, value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's model, made once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            from vllm_models import known_here, written

            made[family] = written(family, tmp_path_factory.mktemp(family))
            known_here(family)
        return made[family]

    return of


@pytest.fixture(scope="module")
def llama(folder: Callable[[str], Path]) -> Any:
    """A Llama in vLLM."""
    from vllm_models import opened

    return opened(folder("Llama"))


@pytest.fixture(scope="module")
def oracle(folder: Callable[[str], Path]) -> Any:
    """The same Llama in HuggingFace."""
    from vllm_models import hugging

    return hugging(folder("Llama"))

"""Tests on trained weights: `make real` brings two small language models and runs what is here.

Where the models are missing, nothing here is collected.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from real.trained import DTYPES, MODELS, NAMES, STORY, Trained
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.patching import PatchingResult, get_act_patch_resid_pre

HERE = Path(__file__).parent

if not all((MODELS / name).exists() for name in NAMES):
    collect_ignore_glob = ["*.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here, before `-m` chooses."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("real")


def _label(choice: tuple[str, torch.dtype]) -> str:
    return f"{choice[0]}-{str(choice[1]).removeprefix('torch.')}"


@pytest.fixture(
    scope="session", params=[(name, dtype) for name in NAMES for dtype in DTYPES], ids=_label
)
def trained(request: pytest.FixtureRequest) -> Trained:
    """Each model in each dtype; all tests of one run before the next is opened."""
    return Trained(*request.param)


@dataclass
class Pair:
    """Indirect object identification: two prompts that differ in the second subject alone.

    The clean one is completed with " John", the corrupted one with " Mary".
    """

    clean: Tensor
    corrupted: Tensor
    john: int
    mary: int

    def margin(self, logits: Tensor) -> Tensor:
        """How much the last position prefers " John", in float32."""
        last = logits[:, -1].float()
        return last[:, self.john] - last[:, self.mary]

    def mean_margin(self, logits: Tensor) -> Tensor:
        return self.margin(logits).mean()

    @property
    def subject(self) -> int:
        """The position of the second subject, the only one that differs."""
        (place,) = (self.clean != self.corrupted)[0].nonzero()
        return int(place)


@pytest.fixture(scope="session")
def pair(trained: Trained) -> Pair:
    clean, corrupted = (trained.ids(STORY.format(name)) for name in ("Mary", "John"))
    return Pair(clean, corrupted, trained.token(" John"), trained.token(" Mary"))


@pytest.fixture(scope="session")
def clean_cache(trained: Trained, pair: Pair) -> ActivationCache:
    _, cache = trained.lens.run_with_cache(pair.clean)
    return cache


@pytest.fixture(scope="session")
def heat(trained: Trained, pair: Pair, clean_cache: ActivationCache) -> PatchingResult:
    """The clean stream patched into the corrupted run, at every layer and position."""
    found = get_act_patch_resid_pre(
        trained.lens, pair.corrupted, clean_cache, pair.mean_margin, baseline=True
    )
    assert isinstance(found, PatchingResult)
    return found

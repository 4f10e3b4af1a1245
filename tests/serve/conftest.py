"""The page of the demo model, served from a thread of this process, and the demo model alone."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from serve.site import Site, serving
from torch import Tensor
from transformers import AutoModelForCausalLM

import lensbridge
from lensbridge.demo import FOLDER
from lensbridge.model import LensModel


@pytest.fixture(scope="session")
def model() -> LensModel:
    return lensbridge.load("demo")


@pytest.fixture(scope="session")
def site(model: LensModel) -> Iterator[Site]:
    with serving(model, load="demo") as found:
        yield found


@pytest.fixture(scope="session")
def bare() -> Any:
    """The demo model without lensbridge."""
    return AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def ids(model: LensModel) -> Callable[[str], Tensor]:
    return lambda text: torch.tensor([model.tokenizer(f"<|endoftext|>{text}")["input_ids"]])

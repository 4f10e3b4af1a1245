"""The core set: loading, reading everything and the conformance kit, on the commonest families.

`make drift` runs this file alone on the oldest transformers that pyproject.toml allows, so it
imports no model class by name, and nothing else that only some releases have.
"""

import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from torch import Tensor, nn

import lensbridge
from lensbridge.inputs.random import inputs_for
from lensbridge.spec import Architecture
from lensbridge.testing import CHECKS, Check, conformance, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

CORE_SET = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "MixtralForCausalLM",
    "GPTNeoXForCausalLM",
    "BertForMaskedLM",
    "T5ForConditionalGeneration",
    "MambaForCausalLM",
    "DeepseekV3ForCausalLM",
)


def built_in(name: str) -> Architecture:
    """The first built-in description of a class."""
    return next(one for one in lensbridge_architectures() if name in one.classes)


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**inputs_for(model)).logits


def checks_for(name: str) -> list[Check]:
    """The kit; without its comparison with eager where the bare model's kernels give other logits.

    Gemma 2's sdpa kernel left out the soft-cap before transformers 5.21.
    """
    architecture = built_in(name)
    own, eager = (logits_of(tiny_model(architecture, name, kernel=k)) for k in (None, "eager"))
    agree = torch.allclose(own, eager, rtol=1e-4, atol=1e-4)
    return [check for check in CHECKS if agree or check.name != "eager attention agrees"]


@pytest.mark.parametrize("name", CORE_SET)
def test_everything_of_a_core_family_is_read_and_the_logits_stay(name: str) -> None:
    hf_model = tiny_model(built_in(name), name)
    (_, first), *others = inputs_for(hf_model).items()
    bare = logits_of(hf_model)
    model = lensbridge.load(hf_model)
    with torch.no_grad():  # as the bare run: with gradients T5's own numbers are a bit others
        logits, cache = model.run_with_cache(first, names_filter=model.hook_names, **dict(others))
    assert torch.equal(logits, bare)
    assert set(cache) == set(model.hook_names)


@pytest.mark.parametrize("name", CORE_SET)
def test_a_core_family_conforms(name: str) -> None:
    conformance(built_in(name), classes=[name], checks=checks_for(name)).require()

"""What the kit and `load` are given in the place of inputs and of a description."""

from typing import Any

import pytest
import torch
from lensbridge_adapters.gpt2 import GPT2

import lensbridge
from lensbridge.conformance.kit import conformance
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import InputError


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"input_id": torch.ones(1, 3, dtype=torch.long)}, r"'input_id': int64 \[1, 3\]"),
        ({"input_ids": torch.ones(1, 3)}, r"'input_ids': float32 \[1, 3\]"),
        ({"input_ids": torch.full((1, 3), 500)}, r"'input_ids': int64 \[1, 3\]"),
        ({"input_ids": None}, "'input_ids': None"),
        ([[1, 2, 3]], "inputs is a list, and has to be the keywords"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(inputs: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        conformance(tiny_model(GPT2), architecture=GPT2, inputs=inputs)


def test_inputs_that_the_model_takes_are_used() -> None:
    ids = torch.tensor([[5, 9, 7, 3, 2]])
    report = conformance(tiny_model(GPT2), architecture=GPT2, inputs={"input_ids": ids})
    assert report.passed


def test_a_keyword_with_a_typo_is_told_the_right_one() -> None:
    with pytest.raises(InputError, match="Did you mean 'architecture'"):
        conformance(tiny_model(GPT2), architectur=GPT2)


@pytest.mark.parametrize("given", ["gpt2", (GPT2,)])
def test_what_is_no_description_is_refused(given: Any) -> None:
    model = tiny_model(GPT2)
    with pytest.raises(InputError, match=r"architecture was given .* It takes a description"):
        lensbridge.load(model, architecture=given)
    with pytest.raises(InputError, match=r"architecture was given .* It takes a description"):
        conformance(model, architecture=given).require()

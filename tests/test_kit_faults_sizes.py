"""Numbers of heads and axes that are not the model's, and what `conformance` does not take."""

from dataclasses import replace
from typing import Any

import pytest
from lensbridge_adapters.doge import DOGE
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.gpt_neox import GPT_NEOX
from lensbridge_adapters.xlnet import XLNET
from lensbridge_adapters.zaya import ZAYA
from torch import nn

from lensbridge.conformance.building import build
from lensbridge.conformance.check import Row
from lensbridge.conformance.kit import conformance
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import InputError, LoadError
from lensbridge.spec import Architecture


def _only_row(model: nn.Module, wrong: Architecture) -> Row:
    (row,) = conformance(model, architecture=wrong).rows
    assert row.status == "failed"
    return row


def _heads(architecture: Architecture, **said: Any) -> Architecture:
    return replace(architecture, dims=replace(architecture.dims, **said))


@pytest.mark.parametrize("said", [1, 2, "n_layer"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_too_few_heads_are_one_message(kernel: str, said: int | str) -> None:
    row = _only_row(tiny_model(GPT2, kernel=kernel), _heads(GPT2, heads=said))
    number = 2 if said == "n_layer" else said
    assert f"dims.heads of the description says {number}" in row.detail
    assert "scores of 4 heads, (2, 4, 7, 7)" in row.detail


def test_too_few_heads_with_rotary_are_one_message() -> None:
    row = _only_row(tiny_model(GPT_NEOX), _heads(GPT_NEOX, heads=2))
    assert (
        "queries of 4 heads, (2, 4, 7, 8), and dims.heads of the description says 2" in row.detail
    )


def test_too_few_key_value_heads_are_one_message() -> None:
    row = _only_row(tiny_model(ZAYA), _heads(ZAYA, kv_heads=1))
    assert "keys or values of 2 heads" in row.detail
    assert "dims.kv_heads of the description says 1" in row.detail


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (55, "it is 55, and the config has vocab_size=97"),
        (200, "it is 200, and transformer.wte has 97 rows"),
        ("n_embd", "'n_embd' is 32, and the config has vocab_size=97"),
    ],
)
def test_another_number_of_tokens_is_one_message(said: int | str, told: str) -> None:
    row = _only_row(tiny_model(GPT2), _heads(GPT2, vocab=said))
    assert row.detail == f"dims.vocab: {told}."


def test_too_few_positions_are_told_first() -> None:
    report = conformance(tiny_model(GPT2), architecture=_heads(GPT2, context=8))
    first, second = report.failures
    assert report.advice[0] == "What the description may say wrongly: pos_embed, context."
    assert first.detail.startswith("The input has 9 positions; the context is 8.")
    assert second.detail == "dims.context: 8, and transformer.wpe has 48 rows."


def test_positions_first_that_is_not_said_is_one_message() -> None:
    row = _only_row(tiny_model(XLNET), replace(XLNET, streams=None))
    assert "hook_embed is (7, 2, 32) where the ids are (2, 7)" in row.detail
    assert "streams='positions_first'" in row.detail


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(InputError, match="was given 'x', a str"):
        conformance("x")  # type: ignore[arg-type]
    model = tiny_model(GPT2)
    with pytest.raises(InputError, match=r"'the stream adds'.*Did you mean 'the stream adds up'"):
        conformance(model, checks=["the stream adds"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="'values are finite', which is no Check"):
        conformance(model, checks="values are finite")  # type: ignore[arg-type]


def test_sizes_that_do_not_go_together_are_named() -> None:
    with pytest.raises(LoadError, match=r"hidden_size=36 and num_attention_heads=4 a head is 9"):
        build(DOGE, hidden_size=36)


def test_an_output_projection_that_does_not_write_the_stream_is_refused() -> None:
    block: Any = GPT2.block
    wrong = replace(GPT2, block=replace(block, attn=replace(block.attn, out="c_attn")))
    row = _only_row(tiny_model(GPT2), wrong)
    assert "the output of 'c_attn' is 96, and the description says 32" in row.detail

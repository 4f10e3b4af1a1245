"""Descriptions with words that the vocabulary does not have, and scales that give no number."""

from dataclasses import replace
from typing import Any

import pytest
from lensbridge_adapters.gpt2 import GPT2

from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.kit import conformance
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import ArchitectureMismatchError
from lensbridge.native.resolve import resolve
from lensbridge.native.resolve.vocabulary import require_vocabulary
from lensbridge.plugins import registry
from lensbridge.spec import Architecture, Block, FusedQKV, Norms

BLOCK = GPT2.block
assert isinstance(BLOCK, Block)
ATTN = BLOCK.attn
assert ATTN is not None


def _block(**said: Any) -> Architecture:
    return replace(GPT2, block=replace(BLOCK, **said))


def _attn(**said: Any) -> Architecture:
    return _block(attn=replace(ATTN, **said))


WRONG: list[tuple[Architecture, str]] = [
    (_block(residual="seq"), r"block\.residual='seq'.*Did you mean 'sequential'\?"),
    (_block(norms=Norms(kind="RSM")), r"norms\.kind='RSM'.*'LN' or 'RMS'\. Did you mean 'RMS'"),  # type: ignore[arg-type]
    (
        _attn(qkv=FusedQKV("c_attn", "blocked", order="kqq")),  # type: ignore[arg-type]
        r"attn\.qkv\.order='kqq'.*'kqv'",
    ),
    (_attn(rotary="no"), r"rotary='no' is not understood: it is True or False"),
    (_attn(out=None), r"attn\.out=None is not understood: it is a str"),
    (_block(mlp="mlp"), r"block\.mlp='mlp'.*an MLP, a GatedMLP"),
    (replace(GPT2, block=[BLOCK]), r"block is a list, and has to be a Block or a tuple"),  # type: ignore[arg-type]
    (replace(GPT2, classes="GPT2LMHeadModel"), r"classes=.*\('GPT2LMHeadModel',\)"),  # type: ignore[arg-type]
    (replace(GPT2, undescribed={"heads": "x"}), r"undescribed has 'heads'.*'attn'"),
    (replace(GPT2, undescribed={"att": "x"}), r"Did you mean 'attn'"),
]


@pytest.mark.parametrize(("wrong", "match"), WRONG, ids=[match for _, match in WRONG])
def test_a_word_that_the_vocabulary_does_not_have_is_refused(
    wrong: Architecture, match: str
) -> None:
    with pytest.raises(ArchitectureMismatchError, match=match):
        resolve(tiny_model(GPT2), wrong)


def test_what_is_built_of_a_wrong_description_is_a_failed_row() -> None:
    for wrong in (replace(GPT2, classes="GPT2LMHeadModel"), _block(residual="seq")):  # type: ignore[arg-type]
        (row,) = conformance(wrong).rows
        assert row.status == "failed"
        assert "is not understood" in row.detail


def test_every_registered_description_is_understood() -> None:
    for claim in registry().claims:
        require_vocabulary(claim.architecture, claim.plugin)


def test_a_reason_for_what_is_described_is_refused() -> None:
    report = conformance(tiny_model(GPT2), architecture=replace(GPT2, undescribed={"attn": "?"}))
    assert [row.check for row in report.failures] == ["nothing is left out"]
    assert "undescribed['attn']: every layer has this part described" in report.failures[0].detail


SCALES = [
    ("n_embd[0]", r"'n_embd\[0\]' asks for an element of 'n_embd', which is 32: no list"),
    ("eos_token_id[7]", r"asks for element 7 of 'eos_token_id', which has 2: \[3, 5\]"),
    ("1 / (n_embd - n_embd)", "has no value with this config: float division by zero"),
    ("10.0 ** 999", "has no value with this config"),
    ("sqrt(0 - n_embd)", "takes the square root of -32"),
    ("(0 - n_embd) ** 0.5", "no real number"),
    ("sqrt((0 - n_embd) ** 0.5)", "takes the square root of"),
    ("n_embd +", "is not understood"),
    ("activation_function", "is 'gelu_new' in the config, and no number"),
]


@pytest.mark.parametrize(("text", "match"), SCALES)
@pytest.mark.parametrize("place", ["embed_scale", "scale"])
def test_a_scale_without_a_number_is_refused(text: str, match: str, place: str) -> None:
    model: Any = tiny_model(GPT2)
    model.config.eos_token_id = [3, 5]
    wrong = _attn(scale=text) if place == "scale" else replace(GPT2, embed_scale=text)
    with pytest.raises(ArchitectureMismatchError, match=match):
        resolve(model, wrong)


def test_an_element_and_a_root_are_computed() -> None:
    model: Any = tiny_model(GPT2)
    model.config.eos_token_id = [3, 5]
    said = replace(GPT2, embed_scale="eos_token_id[1] / sqrt(16)")
    assert resolve(model, said).main.embed_scale.number == 1.25


def test_one_class_can_be_named_alone() -> None:
    checks = [one for one in CHECKS if one.name == "every point fires once"]
    report = conformance(GPT2, classes="GPT2LMHeadModel", checks=checks)
    assert {row.model for row in report.rows} == {"GPT2LMHeadModel"}

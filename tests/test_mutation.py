"""The kit rejects wrong descriptions: each declaration of the adapters, changed one at a time."""

from dataclasses import replace

import pytest
from lensbridge_adapters.bert import BERT
from lensbridge_adapters.gemma2 import GEMMA2
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.llama import LLAMA
from lensbridge_adapters.mixtral import MIXTRAL
from tiny_models import Shape, build

from lensbridge.conformance.mutation import Trial, kill_rate, mutants, survivors, trials
from lensbridge.errors import LoadError
from lensbridge.plugins import registry
from lensbridge.spec import Architecture
from lensbridge.testing import conformance

pytestmark = pytest.mark.usefixtures("one_thread")

WANTED = 0.99
"""Of the mutants that change any value, how many must be refused or rejected."""


def changes(architecture: Architecture) -> set[str]:
    return {mutant.change for mutant in mutants(architecture)}


def test_every_declaration_has_its_mutants() -> None:
    found = changes(LLAMA)
    assert "block.attn.qkv.q and k exchanged" in found
    assert "block.attn.qkv.k and v exchanged" in found
    assert "block.mlp.gate and up exchanged" in found
    assert "block.mlp.up and down exchanged" in found
    assert "block.mlp.gate forgotten" in found
    assert "block.norms.pre_attn: 'input_layernorm' forgotten" in found
    assert "block.norms.pre_attn and post_attn exchanged" in found
    assert "block.norms.kind: 'RMS' -> 'LN'" in found
    assert "block.norms.unit_offset: False -> True" in found
    assert "block.residual: 'sequential' -> 'parallel'" in found
    assert "block.attn.rotary: True -> False" in found
    assert "block.attn.out: 'o_proj' with a typo" in found
    assert "dims.kv_heads: 'num_key_value_heads' forgotten" in found
    assert "block.attn.qkv.layout: 'blocked' -> 'grouped'" in changes(GPT2)


def test_a_mutant_is_the_description_with_one_thing_changed() -> None:
    for mutant in mutants(GPT2):
        assert mutant.architecture != GPT2
        assert replace(mutant.architecture, name="gpt2").classes == GPT2.classes


@pytest.mark.parametrize(
    "architecture", [GPT2, LLAMA, BERT, MIXTRAL, GEMMA2], ids=lambda one: one.name
)
def test_wrong_descriptions_are_rejected(architecture: Architecture) -> None:
    tried = trials(architecture)
    hold_rate(tried)
    assert {one.outcome for one in tried} >= {"refused", "rejected", "equal"}


def hold_rate(tried: list[Trial]) -> None:
    survived = "\n".join(str(one) for one in tried if one.outcome == "survived")
    assert kill_rate(tried) >= WANTED, survived


def test_a_check_that_is_left_out_lets_mutants_through() -> None:
    blind = trials(GPT2, checks=[])
    assert any(one.outcome == "survived" for one in blind)
    assert not survivors(GPT2)


@pytest.mark.matrix
def test_the_wrong_descriptions_of_every_adapter_are_rejected() -> None:
    tried: list[Trial] = []
    for claim in registry().claims:
        try:
            tried += trials(claim.architecture)
        except LoadError:  # a variant that no tiny config has
            continue
    hold_rate(tried)


def test_a_wrong_embedding_without_parameters_is_rejected_by_the_checks() -> None:
    """Ids go to the model's device, so that the checks come to say what is wrong."""
    wrong = replace(GPT2, embed="transformer.drop")
    report = conformance(build(Shape("gpt2")), architecture=wrong)
    assert "hook_embed" in report.to_table()
    assert not report.passed

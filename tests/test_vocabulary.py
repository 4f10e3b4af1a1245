"""Every word in which an architecture is described is held to account by some check."""

import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lensbridge_adapters import lensbridge_architectures
from lensbridge_adapters.rwkv import BLOCK as RWKV_BLOCK
from lensbridge_adapters.rwkv import RWKV
from torch import nn

import lensbridge
from lensbridge.conformance.mutation import mutants
from lensbridge.errors import ArchitectureMismatchError
from lensbridge.inputs.random import inputs_for
from lensbridge.spec import Architecture, Opaque
from lensbridge.testing import CHECKS, Subject, conformance, run_check, tiny_model

GENERATOR = Path(__file__).parent.parent / "docs" / "generate"

EXAMPLES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("Norms", "pre_cross"): ("mbart", {}),
    ("Attention", "v_norm"): ("gemma4_text", {}),
    ("Attention", "in_scale"): ("falcon_h1", {}),
    ("Attention", "clip"): ("dbrx", {}),
    ("Attention", "out_bias"): ("gpt_neox_japanese", {}),
    ("MLP", "overwritten"): ("falcon_new_decoder", {}),
    ("GatedMLP", "gate_scale"): ("falcon_h1", {"mlp_multipliers": [0.6, 0.8]}),
    ("GatedMLP", "inner_norm"): ("bitnet", {}),
    ("Block", "attn"): ("gpt2", {}),
    ("Block", "mlp"): ("gpt2", {}),
    ("Block", "mixer"): ("bamba", {}),
    ("Block", "cross"): ("bart", {}),
    ("Block", "flattens"): ("opt", {}),
    ("Stack", "embed_mixed"): ("roc_bert", {}),
    ("Stack", "embed_overwritten"): ("git", {}),
    ("Stack", "embed_padding"): ("led", {}),
    ("Stack", "streams"): ("gemma3n_text", {}),
    ("Stack", "positions"): ("hunyuan_dense", {}),
    ("Architecture", "unembed_bias"): ("esm2", {}),
    ("Architecture", "head_scale"): ("t5", {"scale_decoder_outputs": True}),
}
"""Where to see that the checks do reject a word which they do not name, and with which config."""


def page_of_words() -> dict[str, Any]:
    sys.path.insert(0, str(GENERATOR))
    try:
        return runpy.run_path(str(GENERATOR / "vocabulary.py"))
    finally:
        sys.path.remove(str(GENERATOR))


WORDS = page_of_words()


def test_every_word_is_held_to_account_or_known_not_to_be() -> None:
    assert WORDS["unheld"]() == WORDS["UNHELD"]


def test_every_word_that_the_page_knows_is_in_the_vocabulary() -> None:
    there = {(one.__name__, word.name) for one in WORDS["dataclasses"]() for word in fields(one)}
    for table in ("CHOSEN", "AT_LOAD", "MEASURED", "UNHELD"):
        assert not set(WORDS[table]) - there, table


def rejects(model: nn.Module, architecture: Architecture, names: tuple[str, ...]) -> bool:
    """Whether one of some checks fails on a description."""
    subject = Subject(model, inputs_for(model), architecture)
    if subject.unreadable:
        return "every point can be read" in names
    chosen = [check for check in CHECKS if check.name in names]
    return any(run_check(check, subject).status == "failed" for check in chosen)


def changed(node: Any, word: tuple[str, str], how: Callable[[Any], Any]) -> Any:
    """A description with one word changed, wherever it is said."""
    if isinstance(node, tuple):
        return tuple(changed(one, word, how) for one in node)
    if not is_dataclass(node):
        return node
    new = {one.name: changed(vars(node)[one.name], word, how) for one in fields(node)}
    owner, name = word
    if owner in {one.__name__ for one in type(node).__mro__} and new[name] is not None:
        new[name] = how(new[name])
    return replace(node, **new)


def misspelt(value: Any) -> Any:
    """What a slip of the pen makes of it."""
    if isinstance(value, bool):
        return not value
    return tuple(f"{one}x" for one in value) if isinstance(value, tuple) else f"{value}x"


CLOSED = replace(RWKV, block=replace(RWKV_BLOCK, mlp=Opaque("feed_forward")))
"""RWKV with MLPs whose inside is not described, which no built-in description has."""


def using(word: tuple[str, str]) -> Architecture:
    """The first description that says a word: a built-in one, if one does."""
    known = (*lensbridge_architectures(), CLOSED)
    return next(one for one in known if changed(one, word, misspelt) != one)


@pytest.mark.parametrize("word", sorted(WORDS["AT_LOAD"]), ids=".".join)
def test_a_wrong_word_is_refused_at_load(word: tuple[str, str]) -> None:
    architecture = using(word)
    model = tiny_model(architecture)
    with pytest.raises(ArchitectureMismatchError):
        lensbridge.load(model, architecture=changed(architecture, word, misspelt))


PASSING: dict[tuple[str, str], tuple[str, Callable[[Any], Any]]] = {
    ("Mixer", "steps"): ("mamba", lambda steps: steps[1:]),
}
"""How a word can be wrong without any check failing, as the page admits."""


@pytest.mark.parametrize("word", PASSING, ids=".".join)
def test_a_word_that_the_page_calls_unheld_is_that_still(word: tuple[str, str]) -> None:
    name, how = PASSING[word]
    right = next(one for one in lensbridge_architectures() if one.name == name)
    wrong = changed(right, word, how)
    assert wrong != right
    report = conformance(tiny_model(right), architecture=wrong)
    assert report.passed, "a check rejects it now: take it off the list in docs/generate"


def test_the_words_that_are_known_to_pass_are_those_that_the_page_admits() -> None:
    assert set(PASSING) == WORDS["UNHELD"] | set(WORDS["NOT_NOTICED"])
    elsewhere = {("GatedMLP", "overwritten"), ("Attention", "overwritten")}
    assert set(EXAMPLES) >= set(WORDS["MEASURED"]) - elsewhere


@pytest.mark.parametrize("word", EXAMPLES, ids=".".join)
def test_a_wrong_word_is_rejected_by_the_checks_that_the_page_names(word: tuple[str, str]) -> None:
    name, config = EXAMPLES[word]
    architecture = next(one for one in lensbridge_architectures() if one.name == name)
    model, named = tiny_model(architecture, **config), WORDS["MEASURED"][word]
    assert not rejects(model, architecture, named)
    wrong = re.compile(rf"(^|[.\]]){word[1]}(\[\d+\])?(: .*forgotten| forgotten|: True -> False)$")
    found = [one for one in mutants(architecture) if wrong.search(one.change)]
    assert any(rejects(model, one.architecture, named) for one in found)

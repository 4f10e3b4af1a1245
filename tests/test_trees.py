"""Trees of models and caches: every name is in them, with the sizes that a run has."""

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from described import of_class
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

import lensbridge
from lensbridge.viz.tree import Tree, ranges

FAMILIES = (
    *("GPT2LMHeadModel", "MixtralForCausalLM", "Gemma3ForCausalLM", "JambaForCausalLM"),
    *("BertForMaskedLM", "GPTNeoXForCausalLM", "T5ForConditionalGeneration"),
)


def leaves(html: str) -> dict[str, str]:
    """Every name that a reader can unfold, and what is said of it."""
    tree = next(d for d in ElementTree.fromstring(html) if d.attrib.get("class") == "lb-tree")
    top = tree.find("ul")
    assert top is not None
    return dict(_leaves(top, [""]))


def _leaves(branch: ElementTree.Element, paths: list[str]) -> Iterator[tuple[str, str]]:
    for entry in branch.findall("li"):
        details = entry.find("details")
        label = entry if details is None else details.find("summary")
        assert label is not None
        names = _names(label.findtext("code", ""))
        here = [f"{path}{name}" for path in paths for name in names]
        said = label.find("i[@class='lb-said']")
        if said is not None:
            yield from ((name, said.text or "") for name in here)
        below = None if details is None else details.find("ul")
        if below is not None:
            yield from _leaves(below, [f"{name}." for name in here])


def _names(label: str) -> list[str]:
    if not label[:1].isdigit():
        return [label]
    found: list[str] = []
    for part in label.split(", "):
        first, _, last = part.partition(" to ")
        found += map(str, range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_shows_every_point_with_the_sizes_of_a_run(name: str) -> None:
    model = of_class(name)
    shown = leaves(model._repr_html_())
    assert set(shown) == set(model.hook_names)
    ids = torch.tensor([[5, 6, 7]])
    more = {"decoder_input_ids": ids} if name.startswith("T5") else {}
    _, cache = model.run_with_cache(ids, **more)
    compared = 0
    for point, tensor in cache.items():
        axes = [axis.split() for axis in shown[point].split(", ")]
        if len(axes) != tensor.ndim:
            continue  # axes that the table does not name
        for axis, size in zip(axes, tensor.shape, strict=True):
            if len(axis) == 2:
                assert int(axis[1]) == size, (point, shown[point], tensor.shape)
                compared += 1
    assert compared > 20


def test_the_facts_are_those_of_the_model() -> None:
    model = lensbridge.load("demo")
    html = model._repr_html_()
    assert "GPT2LMHeadModel" in html
    facts = dict(re.findall(r"<span>(\w+) <b>([^<]*)</b>", html))
    count = sum(p.numel() for p in model.hf_model.parameters())
    assert facts["description"] == "gpt2, built in"
    assert facts["parameters"] == f"{count / 1e3:.3g} K"
    assert (facts["dtype"], facts["device"], facts["layers"]) == ("float32", "cpu", "4")
    assert "<" not in repr(model)


def test_a_description_of_ones_own_is_said() -> None:
    model = of_class("GPT2LMHeadModel")
    again = lensbridge.load(model.hf_model, architecture=model.native.architecture)
    assert "from load(architecture=...)" in again._repr_html_()


def test_a_large_model_has_a_small_tree() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(num_hidden_layers=80, **sizes, **heads)
    html = lensbridge.load(LlamaForCausalLM(config))._repr_html_()
    assert "0 to 79" in html
    assert len(html) < 10_000


def test_layers_that_all_differ_do_not_make_it_large() -> None:
    names = {f"blocks.{i}.hook_{j}": f"d {i}" for i in range(80) for j in range(30)}
    html = Tree("t", {}, names).fragment()
    assert len(html) < 60_000
    assert "6 to 79: others, not shown" in html


def test_a_cache_shows_shapes_types_and_bytes() -> None:
    model = lensbridge.load("demo")
    _, cache = model.run_with_cache(["The Eiffel Tower is in the city of", "When <b> Tom"])
    html = cache._repr_html_()
    shown = leaves(html)
    assert set(shown) == set(cache)
    for name, tensor in cache.items():
        shape, kind, size, unit = re.fullmatch(
            r"\[(.*)\] (\w+), ([\d.]+) (\w+)", shown[name]
        ).groups()  # type: ignore[union-attr]
        assert [int(n) for n in shape.split(", ")] == list(tensor.shape)
        assert f"torch.{kind}" == str(tensor.dtype)
        scale = {"B": 1, "kB": 1e3, "MB": 1e6}[unit]
        assert float(size) * scale == pytest.approx(tensor.nbytes, rel=0.006)
    assert "prompt 0, 9 tokens: &lt;|endoftext|&gt; The ·Eiffel" in html
    assert "<b> Tom" not in html
    assert re.search(r"prompt 1, \d+ tokens: &lt;\|endoftext\|&gt; When", html)
    assert repr(cache).startswith("ActivationCache(82 activations")


def test_a_cache_without_a_model_or_tokens_shows_itself(tmp_path: Any) -> None:
    model = lensbridge.load("demo")
    _, cache = model.run_with_cache(torch.tensor([[1, 2, 3]] * 6))
    cache.save(tmp_path / "cache.safetensors")
    loaded = type(cache).load(tmp_path / "cache.safetensors")
    assert set(leaves(loaded._repr_html_())) == set(cache)
    assert "prompt 0, 3 tokens: 1 2 3" in loaded._repr_html_()
    assert "and 2 more prompts" in loaded._repr_html_()


NAMES = st.from_regex(r"[a-c0-2](\.[a-c0-2]){0,3}", fullmatch=True)


@given(st.dictionaries(NAMES, st.sampled_from("xy")))
def test_no_name_is_lost(details: dict[str, str]) -> None:
    shown = leaves(Tree("", {}, details).fragment())
    assert shown == details


@given(st.sets(st.integers(0, 30)))
def test_ranges_name_each_number_once(numbers: set[int]) -> None:
    assert [int(n) for n in _names(ranges(sorted(numbers))) if n] == sorted(numbers)

"""Interchange interventions: each row by hand, with plain hooks on the bare model."""

from typing import Any

import pytest
import torch
from test_core_set import built_in
from test_interventions import D, basis, editing, hooks_on
from tiny_models import Layer, Shape, build, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import InputError
from lensbridge.testing import tiny_model


def output_of(hf: nn.Module, module: nn.Module, side: str, **call: Any) -> Tensor:
    """What goes into or comes out of a module of the bare model."""
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    with torch.no_grad(), editing(module, side, look):
        hf(**call)
    return seen[0]


def by_hand(
    hf: nn.Module,
    module: nn.Module,
    side: str,
    base: dict[str, Tensor],
    source: dict[str, Tensor],
    pairs: list[list[tuple[int, int]]],
    space: Tensor | None = None,
) -> Tensor:
    """Logits where row i has, at each base column of its pairs, the source's column."""
    there = output_of(hf, module, side, **source)

    def edit(x: Tensor) -> Tensor:
        for i, row in enumerate(pairs):
            for here, from_there in row:
                change = there[i % len(there), from_there] - x[i, here]
                x[i, here] += change if space is None else change @ space @ space.T
        return x

    with torch.no_grad(), editing(module, side, edit):
        return hf(**base).logits


CASES: list[tuple[Any, Any, list[list[tuple[int, int]]]]] = [
    (3, 3, [[(3, 3)]] * 3),
    ([1, 2], [4, 0], [[(1, 4), (2, 0)]] * 3),
    ([[1], [2], [5]], [[0], [7], [-1]], [[(1, 0)], [(2, 7)], [(5, 8)]]),
    ([[1, 4], [2, 3], [0, 6]], [5, 6], [[(1, 5), (4, 6)], [(2, 5), (3, 6)], [(0, 5), (6, 6)]]),
    (-1, -1, [[(6, 8)]] * 3),
    (slice(0, 3), slice(-3, None), [[(0, 6), (1, 7), (2, 8)]] * 3),
    ("last", "last", [[(6, 8)]] * 3),
]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("narrow", [False, True])
def test_interchange_is_each_rows_own_by_hand(family: str, narrow: bool) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf)
    base, source = tokens(3, 7), tokens(3, 9, seed=5)
    space = basis(D[family], 3) if narrow else None
    block = Layer(hf, family, 0).block
    for here, there, pairs in CASES:
        calls = {"input_ids": base}, {"input_ids": source}
        wanted = by_hand(hf, block, "output", *calls, pairs, space)
        found = model.interchange(base, source, ("resid_post", 0), here, there, space)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert hooks_on(hf) == 0


def test_one_source_for_all_and_several_sites() -> None:
    hf = build(Shape("llama"))
    model, base, source = lensbridge.load(hf), tokens(3, 7), tokens(1, 9, seed=5)
    block = Layer(hf, "llama", 0).block
    calls = {"input_ids": base}, {"input_ids": source}
    wanted = by_hand(hf, block, "output", *calls, [[(2, 4)]] * 3)
    found = model.interchange(base, source, ("resid_post", 0), 2, 4)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    # the second block's output at a column is all that is read there afterwards
    sites = [("resid_post", 0), ("resid_post", 1)]
    found = model.interchange(base, source, sites, 2, 4)
    torch.testing.assert_close(found[:, 2], model(source)[:, 4].expand(3, -1))


def test_heads_and_neurons() -> None:
    hf = build(Shape("llama"))
    model, base, source = lensbridge.load(hf), tokens(2, 7), tokens(2, 7, seed=5)
    layer = Layer(hf, "llama", 1)
    there = output_of(hf, layer.o, "input", input_ids=source)

    def edit(x: Tensor) -> Tensor:
        x.unflatten(-1, (4, 6))[:, 2, [0, 3]] = there.unflatten(-1, (4, 6))[:, 5, [0, 3]]
        return x

    with torch.no_grad(), editing(layer.o, "input", edit):
        wanted = hf(base).logits
    found = model.interchange(base, source, ("z", 1), 2, 5, heads=[0, 3])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    there = output_of(hf, layer.down, "input", input_ids=source)

    def neurons(x: Tensor) -> Tensor:
        x[:, 2, 4:9] = there[:, 5, 4:9]
        return x

    with torch.no_grad(), editing(layer.down, "input", neurons):
        wanted = hf(base).logits
    found = model.interchange(base, source, ("post", 1), 2, 5, neurons=range(4, 9))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


PLACES = [
    ("Gemma2ForCausalLM", ("mlp_out", 0), "model.layers.0.post_feedforward_layernorm", "output"),
    ("BertForMaskedLM", ("resid_post", 0), "bert.encoder.layer.0", "output"),
    ("MixtralForCausalLM", ("router_logits", 0), "model.layers.0.mlp.gate", "router"),
    ("JambaForCausalLM", "blocks.0.hook_mixer_out", "model.layers.0.mamba", "output"),
    ("T5ForConditionalGeneration", "encoder.1.hook_resid_pre", "encoder.block.1", "input"),
]


@pytest.mark.parametrize("case", PLACES, ids=lambda case: case[0])
def test_families(case: tuple[str, Any, str, str]) -> None:
    name, site, path, side = case
    hf = tiny_model(built_in(name), name)
    model = lensbridge.load(hf)
    base, source = torch.randint(3, 20, (2, 3, 6))
    more = {"decoder_input_ids": torch.randint(3, 20, (3, 4))} if name.startswith("T5") else {}
    if side == "router":
        _, cache = model.run_with_cache(source, names_filter=site)
        base_cache = model.run_with_cache(base, names_filter=site)[1][site].clone()
        base_cache[:, 1] = cache[site][:, 4]
        wanted = model.run_with_hooks(base, [(site, lambda x, hook: base_cache)])
    else:
        calls = {"input_ids": base, **more}, {"input_ids": source, **more}
        wanted = by_hand(hf, hf.get_submodule(path), side, *calls, [[(1, 4)]] * 3)
    with torch.no_grad():
        if more:
            _, cache = model.run_with_cache(source, names_filter=site, **more)
            one = lensbridge.interventions.Swap(site, cache, 4, positions=1)
            found = model.run_with_interventions(base, one, **more)
        else:
            found = model.interchange(base, source, site, 1, 4)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(found, hf(input_ids=base, **more).logits, atol=1e-3)


def test_positions_that_do_not_go_together_are_refused_before_the_base_runs() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    base, source = tokens(3, 7), tokens(3, 9)
    ran: list[int] = []
    bad: list[tuple[Any, Any, str]] = [
        ([1, 2], 3, "cannot be paired"),
        (7, 3, "position 7 is out of range; there are 7"),
        (3, 9, "source position 9 is out of range; there are 9"),
        (None, None, "not clear which positions correspond"),
        ([[1], [2]], 3, "2 lists; there are 3"),
    ]
    model.hf_model.get_input_embeddings().register_forward_hook(lambda *_: ran.append(1))
    for here, there, message in bad:
        ran.clear()
        with pytest.raises(InputError, match=message):
            model.interchange(base, source, ("resid_post", 0), here, there)
        assert len(ran) == 1
    with pytest.raises(InputError, match="2 examples and the input 3"):
        model.interchange(base, source[:2], ("resid_post", 0), 1, 1)

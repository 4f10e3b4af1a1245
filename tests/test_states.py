"""`model.states_at`: activations at each text's own positions, in one call.

The oracle is one text at a time, and the bare model under plain hooks.
"""

import pytest
import torch
from raw import record
from tiny_models import Layer, Shape, build, left_padded, tokens
from torch import nn

import lensbridge
from lensbridge.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["The Eiffel Tower is in the city of", "The Galata Tower is in", "The Tower"]


def test_last_tokens_of_texts_of_different_lengths() -> None:
    model = lensbridge.load("demo")
    for side in ("left", "right"):
        found = model.states_at(TEXTS, padding_side=side)
        assert found.shape == (4, 3, 128)
        for row, text in enumerate(TEXTS):
            _, cache = model.run_with_cache(text, "resid_post")
            for layer in range(4):
                wanted = cache["resid_post", layer][0, -1]
                torch.testing.assert_close(found[layer, row], wanted, rtol=1e-4, atol=1e-4)
    both = model.states_at(TEXTS, ("z", 1), [0, -1])
    assert both.shape == (3, 2, 4, 32)
    assert torch.equal(model.states_at(TEXTS, ("z", 1)), both[:, 1])
    assert torch.equal(model.states_at(TEXTS, "blocks.1.attn.hook_z", -1), both[:, 1])
    towers = model.states_at(TEXTS, ("resid_pre", 1), model.positions_of("Tower", TEXTS))
    assert towers.shape == (3, 1, 128)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_the_bare_model(family: str) -> None:
    shape = Shape(family, layers=3, dtype=torch.float64)
    model, bare, ids = lensbridge.load(build(shape)), build(shape), tokens(2, 6)
    wanted = record(bare, input_ids=ids).outputs
    mlps = [Layer(bare, family, i).mlp for i in range(3)]
    every = torch.stack([wanted[mlp] for mlp in mlps])
    assert torch.equal(model.states_at(ids, "mlp_out", 2), every[:, :, 2])
    assert torch.equal(model.states_at(ids, "mlp_out", None), every)
    mask = torch.zeros(2, 6).bool()
    mask[0, 1] = mask[1, 4] = True
    assert torch.equal(model.states_at(ids, ("mlp_out", 1), mask)[:, 0], every[1][mask])


def test_it_ends_after_the_last_layer_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = lensbridge.load(build(Shape("gpt2", layers=3))), list[int]()
    blocks: nn.ModuleList = model.hf_model.transformer.h  # type: ignore[union-attr,assignment]
    for i, block in enumerate(blocks):
        forward = block.forward  # a PyTorch hook would count as a listener
        noting = lambda *a, i=i, f=forward, **k: (seen.append(i), f(*a, **k))[1]  # noqa: E731
        monkeypatch.setattr(block, "forward", noting)
    model.states_at(tokens(1, 4), ("resid_post", 1))
    assert seen == [0, 1]


def test_what_does_not_fit() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=2)))
    ids, mask = left_padded(3, 6)
    given = {"input_ids": ids, "attention_mask": mask}
    sizes = mask.sum(-1).tolist()
    with pytest.raises(InputError, match=rf"pos_slice={max(sizes)}: example \d has"):
        model.states_at(given, "resid_post", max(sizes))
    with pytest.raises(InputError, match="points of different shapes"):
        model.states_at(ids, ["resid_post", "z"])

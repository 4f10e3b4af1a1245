"""The promise on trained weights: reads are the bare model's, which stays as it is."""

from typing import Any

import pytest
import torch
from real.trained import TOWER, Trained, at
from test_promise import assert_untouched, fingerprint
from torch import Tensor

import lensbridge

GREEDY = {"max_new_tokens": 4, "do_sample": False}
SAMPLED = {"max_new_tokens": 4, "do_sample": True, "top_k": 20}


def test_every_point_can_be_read_and_no_bit_of_the_logits_changes(trained: Trained) -> None:
    ids, lens = trained.ids(TOWER), trained.lens
    recording = trained.record(ids)
    with torch.no_grad():
        logits, cache = lens.run_with_cache(ids, names_filter=lens.hook_names)
    assert torch.equal(logits, recording.logits)
    assert set(cache) == set(lens.hook_names)
    assert all(cache[name].isfinite().all() for name in cache if not name.endswith("scores"))
    assert torch.equal(cache["hook_embed"], recording.outputs[trained.hf.model.embed_tokens])
    for i in range(lens.cfg.n_layers):
        for point, place in trained.places(i).items():
            found, wanted = cache[f"blocks.{i}.{point}"], at(recording, place)
            assert torch.equal(found.reshape(wanted.shape), wanted), (i, point)
        q, k = trained.queries_and_keys(i, recording)
        assert torch.equal(cache["q", i], q)
        assert torch.equal(cache["k", i], k)


def test_a_padded_batch_is_read_bit_for_bit(trained: Trained) -> None:
    batch = trained.tokenizer(
        [TOWER, "The Colosseum is in"], padding=True, padding_side="left", return_tensors="pt"
    )
    with torch.no_grad():
        wanted = trained.hf(**batch).logits
        logits, _ = trained.lens.run_with_cache(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            names_filter=trained.lens.hook_names,
        )
    assert torch.equal(logits, wanted)


def test_attention_patterns_are_those_of_eager_attention(trained: Trained) -> None:
    ids = trained.ids(TOWER)
    eager = type(trained.hf)._from_config(trained.hf.config, attn_implementation="eager")
    eager.load_state_dict(trained.hf.state_dict())
    with torch.no_grad():
        patterns = eager.eval()(ids, output_attentions=True).attentions
        _, cache = trained.lens.run_with_cache(ids, names_filter="pattern")
    for i, pattern in enumerate(patterns):
        torch.testing.assert_close(cache["pattern", i], pattern)


def look(value: Tensor, hook: lensbridge.Hook) -> None:
    """A hook that only reads."""


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_generate_is_the_bare_models_while_everything_is_read(
    trained: Trained, settings: dict[str, Any]
) -> None:
    ids, lens = trained.ids(TOWER), trained.lens
    torch.manual_seed(5)
    wanted = trained.hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    torch.manual_seed(5)
    assert torch.equal(lens.generate(ids, verbose=False, **settings), wanted)
    torch.manual_seed(5)
    with lens.hooks(fwd_hooks=[(lens.hook_names, look)]):
        assert torch.equal(lens.generate(ids, verbose=False, **settings), wanted)


def test_nothing_is_left_on_the_model(trained: Trained) -> None:
    hf, lens, ids = trained.hf, trained.lens, trained.ids("The city")
    before = fingerprint(hf)

    def halve(value: Tensor, hook: lensbridge.Hook) -> Tensor:
        return value / 2

    lens.run_with_cache(ids, incl_bwd=True, return_type="loss")
    lens.run_with_hooks(ids, fwd_hooks=[(lens.hook_names, halve)])
    lens.generate(ids, verbose=False, **GREEDY)
    lens(lens(ids, stop_at_layer=2), start_at_layer=2)
    assert lens.hf_model is hf
    assert_untouched(hf, before)

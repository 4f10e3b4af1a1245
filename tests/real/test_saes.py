"""SAEs with random weights in trained models, against plain hooks."""

from typing import Any

import pytest
import torch
from raw import run_replacing
from real.trained import TOWER, Trained, at
from saes import Plain
from torch import Tensor

POINTS = ("hook_resid_pre", "attn.hook_z", "hook_mlp_out")


@pytest.fixture(params=POINTS)
def point(request: pytest.FixtureRequest) -> str:
    return request.param


def spliced_at(trained: Trained, point: str) -> tuple[str, Any, Tensor, Plain]:
    """A point of a middle layer: its name, its place, the bare model's value and an SAE."""
    layer = trained.lens.cfg.n_layers // 2
    place = trained.places(layer)[point]
    value = at(trained.record(trained.ids(TOWER)), place)
    return f"blocks.{layer}.{point}", place, value, Plain(value.shape[-1], n=64)


def test_with_the_error_term_no_bit_changes(trained: Trained, point: str) -> None:
    ids, lens = trained.ids(TOWER), trained.lens
    name, _, value, sae = spliced_at(trained, point)
    with torch.no_grad():
        wanted = trained.hf(ids).logits
        with lens.spliced({name: sae}, use_error_term=True):
            logits, cache = lens.run_with_cache(ids)
    assert torch.equal(logits, wanted)
    features = sae.encode(value.float())
    assert torch.equal(cache[f"{name}.hook_sae_acts_post"], features)
    assert not torch.equal(sae.decode(features).to(value), value)


def test_without_it_the_reconstruction_goes_on(trained: Trained, point: str) -> None:
    ids, lens = trained.ids(TOWER), trained.lens
    name, place, value, sae = spliced_at(trained, point)
    made = sae.decode(sae.encode(value.float())).to(value)
    with torch.no_grad():
        wanted = run_replacing(trained.hf, *place, made, input_ids=ids)
        with lens.spliced({name: sae}):
            assert torch.equal(lens(ids), wanted)


def test_an_edited_feature_changes_the_value_by_what_it_decodes_to(
    trained: Trained, point: str
) -> None:
    ids, lens = trained.ids(TOWER), trained.lens
    name, place, value, sae = spliced_at(trained, point)
    features = sae.encode(value.float())
    strongest = int(features[0, -1].argmax())
    fewer = features.clone()
    fewer[..., strongest] = 0
    made = value.float() + (sae.decode(fewer) - sae.decode(features))

    def ablate(activations: Tensor, hook: Any) -> None:
        activations[..., strongest] = 0

    with torch.no_grad():
        wanted = run_replacing(trained.hf, *place, made.to(value), input_ids=ids)
        with lens.spliced({name: sae}, use_error_term=True):
            found = lens.run_with_hooks(ids, fwd_hooks=[(f"{name}.hook_sae_acts_post", ablate)])
        assert not torch.equal(wanted, trained.hf(ids).logits)
    torch.testing.assert_close(found, wanted)

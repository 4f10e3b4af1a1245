"""SAELens's names on the TransformerLens layer, against lensbridge's own methods and by hand."""

import sys
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lensbridge.compat.sae_lens import HookedSAETransformer
from lensbridge.compat.transformer_lens import HookedTransformer

POINT = "blocks.1.hook_resid_pre"
FEATURES = f"{POINT}.hook_sae_acts_post"


class SAE:
    """Random features."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.W_enc = torch.randn(128, 200, generator=generator) / 128**0.5
        self.W_dec = torch.randn(200, 128, generator=generator) / 200**0.5

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc).relu()

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.W_dec


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    return HookedSAETransformer.from_pretrained("demo", device="cpu")


@pytest.fixture
def ids(model: HookedSAETransformer) -> Tensor:
    return model.to_tokens("The Eiffel Tower is in the city of")


def silence(features: Tensor, hook: Any) -> None:
    features[..., :50] = 0


def test_runs_with_saes(model: HookedSAETransformer, ids: Tensor) -> None:
    assert isinstance(model, HookedTransformer)
    sae, at = SAE(), {POINT: SAE()}
    stream = model.run_with_cache(ids)[1][POINT]
    wanted = model(sae.decode(sae.encode(stream)), start_at_layer=1)
    torch.testing.assert_close(model.run_with_saes(ids, saes=at), wanted)
    logits, cache = model.run_with_cache_with_saes(ids, saes=at)
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(cache[FEATURES], sae.encode(stream))
    assert torch.equal(model.run_with_saes(ids, saes=at, use_error_term=True), model(ids))
    kept = sae.encode(stream)
    kept[..., :50] = 0
    edited = model.run_with_hooks_with_saes(ids, saes=at, fwd_hooks=[(FEATURES, silence)])
    torch.testing.assert_close(edited, model(sae.decode(kept), start_at_layer=1))


def test_contexts_and_attachment(model: HookedSAETransformer, ids: Tensor) -> None:
    plain, sae = model(ids), SAE()
    with model.saes({POINT: sae}) as inside:
        assert inside is model
        within = model(ids)
        assert FEATURES in model.hook_dict
        found = model.run_with_cache(ids, names_filter=lambda name: "hook_sae" in name)[1]
        assert FEATURES in found
    assert FEATURES not in model.hook_dict
    assert torch.equal(model(ids), plain)
    model.add_sae(sae, hook_name=POINT)
    assert list(model.acts_to_saes) == [POINT]
    assert torch.equal(model(ids), within)
    model.add_hook(FEATURES, silence)
    assert not torch.equal(model(ids), within)
    model.reset_hooks()
    assert torch.equal(model(ids), within)
    model.reset_saes()
    assert model.acts_to_saes == {}
    assert torch.equal(model(ids), plain)


def test_other_names_are_those_of_sae_lens() -> None:
    import lensbridge.compat.sae_lens as compat

    there = mock.patch.object(compat, "find_spec", return_value=object())
    with mock.patch.dict(sys.modules, {"sae_lens": mock.Mock(SAE=SAE)}), there:
        assert compat.SAE is SAE
    with mock.patch.object(compat, "find_spec", return_value=None):
        with pytest.raises(ImportError, match="pip install sae-lens"):
            _ = compat.SAE
        assert not hasattr(compat, "upload_saes_to_huggingface")
    assert not hasattr(compat, "pytest_plugins")

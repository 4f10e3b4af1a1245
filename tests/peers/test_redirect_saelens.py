"""SAELens's published package on lensbridge, as on TransformerLens: `clients/saelens.py`."""

from typing import Any

import pytest
import torch
from peers.redirected import require_equal, results_of
from torch import Tensor

from lensbridge.compat.transformer_lens import HookedTransformer, HookedTransformerConfig

pytestmark = pytest.mark.peers


def weights() -> dict[str, Tensor]:
    """Of a model of the client's sizes; none of them is zero."""
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=24, n_heads=4, d_head=6, d_mlp=96, d_vocab=61, n_ctx=32,
        act_fn="gelu_new", normalization_type="LN",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(one.shape, generator=generator) * 0.3 + float(name.endswith(".w"))
        for name, one in HookedTransformer(cfg).state_dict().items()
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return results_of("saelens", weights(), tmp_path_factory.mktemp("saelens"))


def test_the_classes_of_saelens_give_what_they_give_on_transformer_lens(results: Any) -> None:
    """Its model class, activation store, training, evaluation and caching, all to rounding."""
    require_equal(*results)


def test_the_client_asks_for_something(results: Any) -> None:
    """The dictionaries change what the model gives, are taken off, and training trains."""
    ours, _ = results
    assert torch.equal(ours["none"], ours["plain"])
    assert torch.equal(ours["after"], ours["plain"])
    for kind in ("stream", "heads", "neurons", "transcoder"):
        assert not torch.allclose(ours[f"{kind}, error False"], ours["plain"], atol=1e-2)
        torch.testing.assert_close(ours[f"{kind}, error True"], ours["plain"])
        assert ours[f"{kind}: gradient"].abs().max() > 0
        assert ours[f"{kind}: class"] == "_SAEWrapper"
    trained = [name for name in ours if name.startswith("trained") and name.endswith("W_enc")]
    assert len(trained) == 3
    assert ours["points"] == ["blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"]

"""SAEs trained on activations: what they find, what they say of themselves, and their files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lensbridge
from lensbridge import Activations, Harvest, Rows
from lensbridge.errors import InputError
from lensbridge.saes import TrainedSAE, fit, score
from lensbridge.saes.trained import Config, Metadata
from lensbridge.saes.training import Step


def sparse(count: int, width: int = 24, features: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sums of two of some random directions, and the directions."""
    keys = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(features, width, generator=keys), dim=1)
    keys = torch.Generator().manual_seed(seed + count)
    chosen = torch.rand(count, features, generator=keys).topk(2).indices
    sizes = 1 + torch.rand(count, 2, generator=keys)
    codes = torch.zeros(count, features).scatter(1, chosen, sizes)
    return codes @ directions * 7 + 3, directions


@pytest.mark.parametrize("kind", ["topk", "standard"])
def test_it_finds_the_directions_that_the_data_are_made_of(kind: Any) -> None:
    data, directions = sparse(20_000)
    how = {"kind": kind, "k": 2, "penalty": 0.01, "steps": 900, "learning_rate": 5e-3}
    sae = fit(data, d_sae=48, batch_size=128, **how)
    rows = torch.nn.functional.normalize(sae.W_dec, dim=1)
    best = (directions @ rows.T).max(1).values
    assert float((best > 0.9).float().mean()) > 0.85
    held_out, _ = sparse(3_000, seed=0)
    found = score(sae, held_out)
    assert found.explained > 0.9
    left = (held_out - sae(held_out)).square().sum() / len(held_out)
    expected = 1 - left / held_out.var(0, correction=0).sum()
    assert found.explained == pytest.approx(float(expected), abs=1e-4)
    assert found.active == pytest.approx(float((sae.encode(held_out) > 0).sum(-1).float().mean()))


def test_training_is_the_same_each_time_and_falls() -> None:
    data, _ = sparse(2_000)
    steps: list[Step] = []
    settings = {"d_sae": 40, "k": 2, "steps": 60, "batch_size": 128}
    one = fit(data, **settings, told=steps.append)
    two = fit(data, **settings)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert [step.step for step in steps] == list(range(60))
    assert steps[-1].loss < steps[0].loss / 2
    assert all(step.active <= 2 for step in steps)
    assert not any(one.requires_grad for one in one.parameters())


def test_it_encodes_by_its_formula() -> None:
    data, _ = sparse(500)
    sae = fit(data, d_sae=40, k=3, steps=5, batch_size=64)
    pre = ((data - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    features = sae.encode(data)
    assert torch.equal(features.topk(3).values, pre.topk(3).values)
    assert features.count_nonzero(-1).max() <= 3
    assert torch.equal(sae(data), features @ sae.W_dec + sae.b_dec)


def test_it_trains_on_a_harvest_and_goes_into_the_model(tmp_path: Path) -> None:
    model = lensbridge.load("demo")
    texts = [f"The {a} Tower is in the city of {b}" for a in "abcdefgh" for b in "stuvwxyz"]
    spec = Harvest(model, texts, points=[("resid_post", 1)], rows=Rows(32), shard_tokens=300)
    spec.run(tmp_path / "acts")
    acts = Activations(tmp_path / "acts")
    sae = fit(acts, d_sae=256, k=16, steps=150, batch_size=128, window=500)
    found = score(sae, acts)
    assert found.explained > 0.5
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    _, cache = model.run_with_cache_with_saes(texts[0], saes=[sae])
    point = "blocks.1.hook_resid_post.hook_sae_acts_post"
    _, plain = model.run_with_cache(texts[0])
    expected = sae.encode(plain["resid_post", 1])
    torch.testing.assert_close(cache[point], expected)
    sae.save(tmp_path / "sae")
    again = TrainedSAE.load(tmp_path / "sae")
    assert again.cfg == sae.cfg
    assert torch.equal(again.encode(plain["resid_post", 1]), expected)
    top = acts.top(("resid_post", 1), (sae, int(expected[0, -1].argmax())), k=3)
    assert top[0].value >= float(expected[0, -1].max()) - 1e-4


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="k=50 features cannot be active of 40"):
        fit(torch.randn(9, 4), d_sae=40, k=50)
    with pytest.raises(InputError, match="'topk' or 'standard'"):
        fit(torch.randn(9, 4), d_sae=40, kind="top")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="steps=0"):
        fit(torch.randn(9, 4), d_sae=40, k=1, steps=0)
    with pytest.raises(InputError, match="All activations are equal"):
        fit(torch.ones(9, 4), d_sae=40, k=1)
    with pytest.raises(InputError, match="not on list"):
        fit([1.0], d_sae=40)
    with pytest.raises(InputError, match="has no SAE"):
        TrainedSAE.load(tmp_path)


def test_a_last_batch_of_one_entry_does_not_disturb() -> None:
    data, _ = sparse(129)
    losses: list[float] = []
    fit(data, d_sae=48, k=4, steps=30, batch_size=128, told=lambda one: losses.append(one.loss))
    assert max(losses) < 5  # every second batch has one entry, and so no variance


def test_activations_without_what_training_needs(tmp_path: Path) -> None:
    broken = torch.randn(9, 4)
    broken[3, 2] = float("nan")
    with pytest.raises(InputError, match="not a number"):
        fit(broken, d_sae=8, k=1)
    sae = TrainedSAE(Config("topk", 4, 8, 1, Metadata("")))
    with pytest.raises(InputError, match="no variance"):
        score(sae, torch.ones(9, 4))
    spec = Harvest("demo", ["The Eiffel Tower"], [("resid_post", 1)], reduce="norm")
    spec.run(tmp_path)
    with pytest.raises(InputError, match="no width"):
        fit(Activations(tmp_path), d_sae=8, k=1)

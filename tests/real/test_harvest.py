"""A harvest of trained models: the bare model's values, whoever computes a shard."""

import hashlib
from pathlib import Path

import torch
from real.trained import STORY, TOWER, Trained, at

from lensbridge import Activations, Harvest, Rows
from lensbridge.saes import fit, score


def hashes(folder: Path) -> list[str]:
    """The hash of every shard."""
    found = sorted(folder.glob("shard-*.safetensors"))
    return [hashlib.sha256(one.read_bytes()).hexdigest() for one in found]


def test_a_harvest_has_the_values_of_the_bare_model(trained: Trained, tmp_path: Path) -> None:
    layer = trained.lens.cfg.n_layers // 2
    name = f"blocks.{layer}.hook_resid_pre"
    texts = [TOWER, STORY, TOWER[:20], STORY[:50]]
    rows = Rows(length=64, packing="pad")
    spec = Harvest(trained.lens, texts, [name], rows=rows, batch=1, shard_tokens=40)
    spec.run(tmp_path / "alone")
    acts = Activations(tmp_path / "alone", check=True)
    expected = []
    for text in texts:
        ids = trained.lens.to_tokens(text)[:, :64]
        place = trained.places(layer)["hook_resid_pre"]
        expected.append(at(trained.record(ids), place)[0])
    assert torch.equal(acts[name][:], torch.cat(expected))
    assert acts[name].dtype == trained.lens.dtype
    for part in ("1/2", "0/2"):
        spec.run(tmp_path / "parts", part=part)
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "alone")


def test_an_sae_of_a_harvest_reconstructs(trained: Trained, tmp_path: Path) -> None:
    layer = trained.lens.cfg.n_layers // 2
    point = ("mlp_out", layer)
    rows = Rows(length=48, packing="concat")
    texts = [STORY, TOWER, STORY[30:], STORY[:90]]
    Harvest(trained.lens, texts, [point], rows=rows, dtype="float32").run(tmp_path)
    acts = Activations(tmp_path)
    sae = fit(acts, d_sae=512, k=16, steps=60, batch_size=64)
    assert score(sae, acts).explained > 0.5

"""Why a model lacks a point, and why a run did not reach one."""

from pathlib import Path

import pytest
import torch
from lensbridge_adapters.mamba import MAMBA
from lensbridge_adapters.mllama import MLLAMA
from lensbridge_adapters.zamba import ZAMBA

import lensbridge
from lensbridge.cli import main
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import AbsentPointError, HookNeverFiredError

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = torch.arange(5)[None]


@pytest.mark.parametrize(
    ("point", "why"),
    [
        ("hook_resid_mid", "'zamba' describes one branch of ZambaMambaDecoderLayer, so there is"),
        ("hook_mlp_out", "ZambaMambaDecoderLayer has no MLP that 'zamba' describes"),
    ],
)
def test_a_layer_of_one_branch_says_so(point: str, why: str) -> None:
    model = lensbridge.load(tiny_model(ZAMBA))
    with pytest.raises(AbsentPointError, match=why):
        model.run_with_cache(TOKENS, names_filter=f"blocks.0.{point}")


def test_a_mixer_is_named_where_attention_is_asked_for() -> None:
    model = lensbridge.load(tiny_model(MAMBA))
    with pytest.raises(AbsentPointError, match="MambaBlock has MambaMixer in the place of attenti"):
        model.run_with_cache(TOKENS, names_filter="blocks.0.attn.hook_pattern")


@pytest.mark.parametrize("name", ["vision.blocks.0.hook_resid_pre", "blocks.1.cross_attn.hook_q"])
def test_a_run_without_an_image_says_that_it_needs_one(name: str) -> None:
    model = lensbridge.load(tiny_model(MLLAMA))
    with pytest.raises(HookNeverFiredError, match=r"not given an image \(pixel_values=...\)"):
        model.run_with_cache(TOKENS, names_filter=name)


def test_a_folder_for_an_adapter_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object) -> None:
        raise OSError("far enough")

    monkeypatch.setattr("lensbridge.cli.new_adapter._load", stop)
    assert main(["new-adapter", "demo", "--output", str(tmp_path / "a" / "b")]) == 1
    assert (tmp_path / "a" / "b").is_dir()

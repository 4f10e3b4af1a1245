"""Descriptions derived from what models do: the same as the built-in ones, or a refusal."""

from pathlib import Path

import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from odd_model import OddConfig, OddModel
from torch import nn

import lensbridge
from lensbridge.cli import main
from lensbridge.derive import derive, derive_and_check
from lensbridge.errors import UnsupportedArchitectureError
from lensbridge.spec import Architecture, FusedQKV, GatedMLP
from lensbridge.testing import tiny_model

FAMILIES = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "GPTNeoXForCausalLM",
    "BloomForCausalLM",
    "Gemma2ForCausalLM",
    "Olmo2ForCausalLM",
    "PhiForCausalLM",
    "GraniteForCausalLM",
    "Qwen3ForCausalLM",
    "OPTForCausalLM",
    "DeepseekV3ForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "FalconForCausalLM",
    "BertForMaskedLM",
)


def built_in(name: str) -> Architecture:
    """The first built-in description of a class."""
    return next(one for one in lensbridge_architectures() if name in one.classes)


def odd(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    return OddModel(OddConfig(**settings)).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_derived_reads_the_same_values_as_the_built_in_adapter(name: str) -> None:
    model = tiny_model(built_in(name), name)
    derivation = derive(model)
    assert derivation.architecture is not None
    assert not derivation.missing
    theirs = lensbridge.load(model)
    ours = lensbridge.load(model, architecture=derivation.architecture)
    assert set(ours.hook_names) == set(theirs.hook_names)
    ids = torch.tensor([[5, 9, 7, 11, 6]])
    _, a = theirs.run_with_cache(ids, names_filter=theirs.hook_names)
    _, b = ours.run_with_cache(ids, names_filter=ours.hook_names)
    for point in theirs.hook_names:
        torch.testing.assert_close(b[point], a[point], msg=lambda text, at=point: f"{at}: {text}")


def test_names_do_not_help_and_are_not_needed() -> None:
    model = odd()
    architecture = derive_and_check(model)
    assert architecture.embed == "head"
    assert architecture.blocks == "experts"
    assert architecture.final_norm == "wpe"
    assert architecture.unembed == "embed"
    assert (architecture.dims.layers, architecture.dims.heads) == ("floors", "voices")
    block = architecture.block
    assert not isinstance(block, tuple)
    assert (block.norms.pre_attn, block.norms.pre_mlp) == ("b", "a")
    assert (block.norms.kind, block.norms.unit_offset) == ("RMS", True)
    assert block.attn is not None
    assert block.attn.path == "dropout"
    assert block.attn.qkv == FusedQKV("down_gate", layout="grouped")
    assert (block.attn.out, block.attn.scale, block.attn.rotary) == ("mlp", "damping", True)
    assert isinstance(block.mlp, GatedMLP)
    assert (block.mlp.gate, block.mlp.up, block.mlp.down) == ("key", "query", "output")


def test_load_takes_what_was_derived() -> None:
    model = lensbridge.load(odd())
    ids = torch.tensor([[5, 9, 7]])
    _, cache = model.run_with_cache(ids)
    total = cache["resid_pre", 0] + cache["attn_out", 0]
    torch.testing.assert_close(cache["resid_mid", 0], total)


def test_the_model_is_left_as_it_is() -> None:
    model = odd()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    derive_and_check(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(not module._forward_hooks for module in model.modules())


def test_a_sum_that_is_none_leaves_layers_by_their_ends() -> None:
    model = odd(twist="sum")
    assert "residual" in derive(model).missing
    block = derive_and_check(model).block
    assert not isinstance(block, tuple)
    assert block.residual is None


def test_a_broken_chain_is_refused_and_the_part_named() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="layer 1 of 'experts' does not read"):
        derive_and_check(odd(twist="chain"))
    with pytest.raises(UnsupportedArchitectureError, match="does not read the output of layer 0"):
        lensbridge.load(odd(twist="chain"))


def test_a_starter_file_says_what_is_missing_and_can_be_run() -> None:
    text = derive(odd(twist="sum")).render()
    assert "# residual: not established" in text
    names: dict[str, object] = {}
    exec(compile(text, "starter", "exec"), names)
    assert names["ARCHITECTURES"] == (names["ODD"],)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_rendered_is_what_was_derived(name: str) -> None:
    derivation = derive(tiny_model(built_in(name), name))
    names: dict[str, object] = {}
    exec(compile(derivation.render(), name, "exec"), names)
    assert names["ARCHITECTURES"] == (derivation.architecture,)
    assert all(len(line) <= 100 for line in derivation.render().splitlines())


def test_an_encoder_and_a_decoder_are_two_stacks() -> None:
    name = "T5ForConditionalGeneration"
    architecture = derive_and_check(tiny_model(built_in(name), name))
    assert architecture.prefix == "decoder"
    assert [tower.prefix for tower in architecture.towers] == ["encoder"]
    block = architecture.block
    assert not isinstance(block, tuple)
    assert block.cross is not None
    assert block.norms.pre_cross is not None


def test_new_adapter_writes_a_file_and_its_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-adapter", "demo", "--output", str(tmp_path)]) == 0
    assert "attention 'attn' from one projection" in capsys.readouterr().out
    names: dict[str, object] = {}
    exec(compile((tmp_path / "gpt2.py").read_text(), "gpt2", "exec"), names)
    assert names["ARCHITECTURES"] == (names["GPT2"],)
    assert "conformance(GPT2).require()" in (tmp_path / "test_gpt2.py").read_text()


def test_new_adapter_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpt2.py").write_text("mine")
    assert main(["new-adapter", "demo", "--output", str(tmp_path)]) == 1
    assert (tmp_path / "gpt2.py").read_text() == "mine"
    assert "is there already" in capsys.readouterr().err

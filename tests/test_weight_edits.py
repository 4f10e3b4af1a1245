"""Weights for the time of a block: what is written is the native parameter, and all comes back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from test_core_set import built_in
from test_processing import Snapshot
from tiny_models import Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge.errors import ProcessingError, ShapeError, WeightError
from lensbridge.model import LensModel
from lensbridge.testing import tiny_model

IDS = tokens(2, 6)
DOWN = {
    "gpt2": "transformer.h.1.mlp.c_proj",
    "llama": "model.layers.1.mlp.down_proj",
    "neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
}


def opened(family: str = "gpt2") -> tuple[Any, LensModel]:
    hf = build(Shape(family))
    return hf, lensbridge.load(hf)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_weight_is_the_native_one_for_the_time_of_a_block(family: str) -> None:
    hf, model = opened(family)
    before, snapshot = hf(IDS).logits, Snapshot(hf)
    W = torch.randn_like(model.weight("blocks.1.mlp.W_out"))
    twin = build(Shape(family))
    down = twin.get_submodule(DOWN[family])
    with torch.no_grad():
        down.weight.copy_(W if family == "gpt2" else W.T)
    with model.edited({"blocks.1.mlp.W_out": W}) as inside:
        assert inside is model
        assert torch.equal(hf(IDS).logits, twin(IDS).logits)
        assert torch.equal(model.weight("blocks.1.mlp.W_out"), W)
    snapshot.assert_same()
    assert torch.equal(hf(IDS).logits, before)


@pytest.mark.parametrize(
    "name",
    [
        *("GPT2LMHeadModel", "GPTNeoXForCausalLM", "FalconForCausalLM", "CodeGenForCausalLM"),
        *("Phi3ForCausalLM", "GemmaForCausalLM", "MixtralForCausalLM", "GptOssForCausalLM"),
        *(
            "BertForMaskedLM",
            "T5ForConditionalGeneration",
            "MptForCausalLM",
            "GPTBigCodeForCausalLM",
        ),
    ],
)
def test_every_writable_weight_can_be_given_new_values(name: str) -> None:
    hf = tiny_model(built_in(name), name)
    model, snapshot = lensbridge.load(hf), Snapshot(hf)
    written = 0
    for one in model.weight_names:
        now = model.weight(one).detach().clone()
        new = torch.randn_like(now)
        source = model.components.weights[one].source
        if not source.held.writable or (source.stored is None and source.linear is None):
            with (
                pytest.raises(WeightError, match=one.replace(".", r"\.")),
                model.edited({one: new}),
            ):
                pass
            continue
        others = _others(model, one)
        with model.edited({one: new}):
            torch.testing.assert_close(model.weight(one).detach(), new, rtol=1e-5, atol=1e-5)
            for other, value in others.items():
                assert torch.equal(model.weight(other), value), other
        written += 1
    assert written > 8
    snapshot.assert_same()


def _others(model: LensModel, name: str) -> dict[str, Tensor]:
    """Weights that share no parameter with one, or only the other parts of a fused one."""
    known = model.components.weights
    own = known[name].source.stored
    tied = [one for one in known if known[one].source.stored is own and one[0] != name[0]]
    layer = name.rpartition(".")[0]
    near = [one for one in known if one.startswith(layer) and one not in (name, *tied)]
    return {one: model.weight(one).detach().clone() for one in near}


def test_functions_numbers_and_nested_blocks() -> None:
    hf, model = opened("llama")
    snapshot, W = Snapshot(hf), model.weight("blocks.0.attn.W_Q").detach().clone()
    changes: dict[str, Any] = {"blocks.0.attn.W_Q": lambda W: W * 2, "blocks.0.attn.W_O": 0.0}
    with model.edited(changes):
        assert torch.equal(model.weight("blocks.0.attn.W_Q"), 2 * W)
        assert not model.weight("blocks.0.attn.W_O").any()
        with model.edited({"blocks.0.attn.W_Q": lambda W: W + 1}):
            assert torch.equal(model.weight("blocks.0.attn.W_Q"), 2 * W + 1)
        assert torch.equal(model.weight("blocks.0.attn.W_Q"), 2 * W)
    snapshot.assert_same()


def test_what_fails_leaves_every_byte() -> None:
    hf, model = opened()
    snapshot = Snapshot(hf)
    with pytest.raises(RuntimeError, match="inside"), model.edited({"blocks.0.attn.W_V": 1.0}):
        raise RuntimeError("inside")
    snapshot.assert_same()
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({"blocks.0.mlp.W_out": 1.0, "blocks.0.mlp.W_ou": 1.0}, WeightError, "Did you mean"),
        ({"blocks.0.mlp.W_out": 1.0, "blocks.1.mlp.b_out": torch.ones(3)}, ShapeError, "shape"),
        ({}, WeightError, "mapping"),
    ]
    for changes, error, match in wrong:
        with pytest.raises(error, match=match), model.edited(changes):
            raise AssertionError("it went in")
        snapshot.assert_same()


def test_a_bias_that_a_projection_lacks_is_its_own_inside() -> None:
    hf, model = opened("mistral")
    snapshot = Snapshot(hf)
    b = torch.randn(model.cfg.d_model)
    down = hf.model.layers[0].mlp.down_proj
    assert down.bias is None
    handle = down.register_forward_hook(lambda module, args, out: out + b)
    wanted = hf(IDS).logits
    handle.remove()
    with model.edited({"blocks.0.mlp.b_out": b}):
        torch.testing.assert_close(hf(IDS).logits, wanted, rtol=1e-5, atol=1e-5)
    assert down.bias is None
    snapshot.assert_same()


def test_tied_weights_stay_tied_or_are_untied_inside() -> None:
    hf, model = opened()
    snapshot, W = Snapshot(hf), model.W_E.detach().clone()
    new = torch.randn_like(W)
    with model.edited({"embed.W_E": new}):
        assert torch.equal(model.W_U, new.T)
        assert hf.lm_head.weight is hf.transformer.wte.weight
    with model.edited({"embed.W_E": new}, untied=True):
        assert torch.equal(model.W_E, new)
        assert torch.equal(model.W_U, W.T)
    snapshot.assert_same()
    both: dict[str, Any] = {"embed.W_E": new, "unembed.W_U": -new.T}
    with pytest.raises(WeightError, match="one parameter"), model.edited(both):
        pass
    snapshot.assert_same()
    with model.edited(both, untied=True):
        assert torch.equal(model.W_U, -new.T)
    with model.edited({**both, "unembed.W_U": new.T}):
        assert torch.equal(model.W_U, new.T)
    snapshot.assert_same()


def test_a_lasting_edit_is_undone_or_kept() -> None:
    hf, model = opened()
    snapshot = Snapshot(hf)
    first = model.edit_weights({"blocks.0.mlp.W_in": 0.0})
    second = model.edit_weights({"blocks.0.mlp.W_in": 1.0, "blocks.1.mlp.W_in": 1.0})
    with pytest.raises(WeightError, match="Undo that one first"):
        first.undo()
    with pytest.raises(ProcessingError, match="keep"):
        model.process_weights_()
    with model.processed():
        assert first.in_force
    second.undo()
    assert not model.weight("blocks.0.mlp.W_in").any()
    first.undo()
    snapshot.assert_same()
    for act in (first.undo, first.keep):
        with pytest.raises(WeightError, match="undone or kept already"):
            act()
    third = model.edit_weights({"blocks.0.mlp.W_in": 0.0})
    third.keep()
    assert not third.in_force
    assert not model.weight("blocks.0.mlp.W_in").any()


def test_gradients_reach_the_parameters_inside() -> None:
    hf, model = opened()
    with model.edited({"blocks.0.mlp.W_in": lambda W: W * 2}):
        model(IDS).square().mean().backward()
        assert bool(hf.transformer.h[0].mlp.c_fc.weight.grad.abs().sum() > 0)


def _adapted(hf: Any) -> Any:
    return get_peft_model(hf, LoraConfig(target_modules=["c_proj"], fan_in_fan_out=True))


def _offloaded(hf: Any) -> Any:
    cpu_offload(hf, torch.device("cpu"))
    return hf


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize(("held", "why"), [(_adapted, "PEFT|adapt"), (_offloaded, "offloaded")])
def test_what_cannot_be_written_to_is_refused_by_name(held: Callable[[Any], Any], why: str) -> None:
    model = lensbridge.load(held(build(Shape("gpt2"))))
    with (
        pytest.raises(WeightError, match=rf"blocks\.1\.mlp\.W_out cannot be edited.*({why})"),
        model.edited({"blocks.1.mlp.W_out": 0.0}),
    ):
        pass

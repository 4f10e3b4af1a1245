"""Processed weights: the function stays, weights are what definitions say, all comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from described import gpt2, log_probs, tiny
from hypothesis import given
from lensbridge_adapters.llama import LLAMA
from peft import LoraConfig, get_peft_model
from tiny_models import Layer, Shape, build, shapes, tokens
from torch import nn

import lensbridge
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError, ProcessingError
from lensbridge.inputs.random import inputs_for
from lensbridge.model import LensModel

FOLDED_WHOLE = [
    *("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "codegen", "mpt"),
    *("stablelm", "starcoder2", "llama", "qwen3", "gemma", "gemma2", "phi3", "granite", "cohere"),
    *("mixtral", "olmoe", "gpt_oss", "deepseek", "t5", "mbart"),
]
STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


class Snapshot:
    """Every byte of a model, and which objects hold them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.bytes = {name: value.clone() for name, value in model.state_dict().items()}
        self.objects = self.held()

    def held(self) -> dict[str, tuple[int, int]]:
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: (id(one), one.data_ptr()) for name, one in named}

    def assert_same(self) -> None:
        now = self.model.state_dict()
        assert list(now) == list(self.bytes)
        for name, value in self.bytes.items():
            assert torch.equal(now[name], value), name
        assert self.held() == self.objects


@pytest.mark.parametrize("name", FOLDED_WHOLE)
def test_the_function_stays_and_every_byte_comes_back(name: str) -> None:
    model = tiny(name)
    inputs, before = inputs_for(model.hf_model), Snapshot(model.hf_model)
    wanted = log_probs(model.hf_model, inputs)
    with model.processed(fold_ln=True):
        found = log_probs(model.hf_model, inputs)
        for norm in model.processing.folded:
            gain, bias = model.weight(f"{norm}.w"), model.weight(f"{norm}.b")
            assert torch.equal(gain, torch.ones_like(gain)), norm
            assert not bias.any(), norm
        assert f"{model.native.main.prefix}.0.ln1" in model.processing.folded
        assert "ln_final" in model.processing.folded
    # some families compute in float32 inside
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-6)
    before.assert_same()
    assert torch.equal(log_probs(model.hf_model, inputs), wanted)


@given(shapes())
def test_the_function_stays_whatever_the_shape(shape: Shape) -> None:
    hf_model = build(replace(shape, dtype=torch.float64))
    before, inputs = Snapshot(hf_model), {"input_ids": tokens()}
    wanted = log_probs(hf_model, inputs)
    with lensbridge.load(hf_model).processed(True, refactor_factored_attn_matrices=None):
        torch.testing.assert_close(log_probs(hf_model, inputs), wanted, atol=1e-6, rtol=1e-6)
    before.assert_same()


@pytest.mark.parametrize(
    "name", ["bert", "bart", "jamba", "falcon_h1", "qwen2_moe", "olmo2", "rwkv"]
)
def test_what_cannot_be_done_is_left_and_said(name: str) -> None:
    model = tiny(name)
    inputs, before = inputs_for(model.hf_model), Snapshot(model.hf_model)
    wanted = log_probs(model.hf_model, inputs)
    with model.processed():
        torch.testing.assert_close(log_probs(model.hf_model, inputs), wanted, atol=2e-6, rtol=1e-6)
        assert model.processing.left
    before.assert_same()


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step", "reason"),
    [
        ("bert", "fold_ln", "post-norm"),
        ("qwen2_moe", "fold_ln", "shared_expert_gate"),
        ("jamba", "fold_ln", "a mixer"),
        ("bloom_skip_norm", "fold_ln", "the branch is added to its output"),
        ("phimoe", "fold_ln", "cannot have one"),
        ("llama", "center_writing_weights", "RMSNorm"),
        ("bert", "center_writing_weights", "post-norm"),
        ("gemma2", "center_unembed", "soft-capped"),
        ("gpt_oss", "fold_value_biases", "sinks"),
        ("olmo", "fold_value_biases", "clipped"),
        ("llama", "refactor_factored_attn_matrices", "rotary"),
        ("gpt_bigcode", "refactor_factored_attn_matrices", "share a key/value head"),
    ],
)
def test_what_would_change_the_function_is_refused_before_anything_is_written(
    name: str, step: str, reason: str
) -> None:
    model = tiny(name)
    before = Snapshot(model.hf_model)
    versions = [one._version for one in model.hf_model.parameters()]
    off = dict.fromkeys((*STEPS, "refactor_factored_attn_matrices"), False)
    with (
        pytest.raises(ProcessingError, match=rf"(?s){step}.*{reason}"),
        model.processed(**{**off, step: True}),
    ):
        pytest.fail("it was processed")
    before.assert_same()
    assert versions == [one._version for one in model.hf_model.parameters()]
    with model.processed(**{**off, step: True}, on_impossible="skip"):
        assert any(reason in one.why and one.step == step for one in model.processing.left)
    assert model.processing == type(model.processing)()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads a name that transformers retires
def test_adapted_weights_are_refused() -> None:
    config = LoraConfig(target_modules=["q_proj"], r=2)
    wrapped = get_peft_model(build(Shape("llama")), config)
    model = lensbridge.load(wrapped)
    with pytest.raises(ProcessingError, match=r"LoRA.*merge_and_unload"), model.processed(True):
        pytest.fail("it was processed")
    with model.processed(center_unembed=True):
        assert model.processing.folded == ("blocks.0.ln2", "blocks.1.ln2", "ln_final")


def test_offloaded_weights_are_refused() -> None:
    hf_model = build(Shape("llama"))
    inputs = {"input_ids": tokens()}
    wanted = log_probs(hf_model, inputs)
    cpu_offload(hf_model.model.layers[0].mlp, execution_device=torch.device("cpu"))
    model = lensbridge.load(hf_model)
    with pytest.raises(ProcessingError, match=r"ln2: .* offloaded"), model.processed(True):
        pytest.fail("it was processed")
    with model.processed():
        assert "blocks.0.ln2" not in model.processing.folded
        torch.testing.assert_close(log_probs(hf_model, inputs), wanted, atol=1e-4, rtol=1e-4)


def test_a_weight_that_two_layers_share_is_refused() -> None:
    hf_model = build(Shape("llama"))
    layers = hf_model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    model = lensbridge.load(hf_model)
    with pytest.raises(ProcessingError, match="another norm too"), model.processed(True):
        pytest.fail("it was processed")


def test_a_module_that_layers_share_is_folded_once() -> None:
    hf_model = build(Shape("llama", dtype=torch.float64))
    hf_model.model.layers[1] = hf_model.model.layers[0]
    model = lensbridge.load(hf_model)
    inputs = {"input_ids": tokens()}
    with torch.no_grad():
        wanted = hf_model(**inputs).logits
        with model.processed(fold_ln=True, center_unembed=False):
            torch.testing.assert_close(hf_model(**inputs).logits, wanted)
            assert "blocks.1.ln2" in model.processing.folded


def test_a_description_that_is_wrong_is_found_and_everything_put_back() -> None:
    norms = replace(LLAMA.block.norms, unit_offset=True)
    wrong = replace(LLAMA, block=replace(LLAMA.block, norms=norms))
    hf_model = build(Shape("llama"))
    model, before = lensbridge.load(hf_model, architecture=wrong), Snapshot(hf_model)
    with pytest.raises(ProcessingError, match="fold_ln changed what"), model.processed():
        pytest.fail("it was processed")
    before.assert_same()
    with model.processed(check=False):
        assert model.processing.fold_ln


# --- coming back ---------------------------------------------------------------------------------


def test_an_exception_inside_puts_everything_back() -> None:
    hf_model, model = gpt2()
    before = Snapshot(hf_model)
    with pytest.raises(KeyError), model.processed():
        raise KeyError
    before.assert_same()
    assert not model.processing.steps


def test_edits_inside_are_lost_and_contexts_nest() -> None:
    hf_model, model = gpt2()
    before = Snapshot(hf_model)
    with model.processed(fold_ln=True, center_unembed=False):
        outer = Snapshot(hf_model)
        with model.processed(center_unembed=True):
            model.W_O[0] = 0.0
            assert model.processing.center_unembed
        outer.assert_same()
        assert not model.processing.center_unembed
    before.assert_same()


def test_a_model_that_was_moved_inside_comes_back_as_what_it_is_now() -> None:
    hf_model = build(Shape("llama"))
    model, before = lensbridge.load(hf_model), Snapshot(hf_model)
    with model.processed():
        hf_model.double()
    assert {one.dtype for one in hf_model.parameters()} == {torch.float64}
    for name, value in hf_model.state_dict().items():
        assert torch.equal(value, before.bytes[name].double())


def test_a_backward_pass_through_other_weights_is_an_error() -> None:
    hf_model, model = gpt2()
    with model.processed():
        loss = hf_model(tokens(), labels=tokens()).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_modes_and_random_numbers_are_left_alone() -> None:
    hf_model, model = gpt2()
    hf_model.transformer.h[0].train()
    modes = [module.training for module in hf_model.modules()]
    state = torch.get_rng_state()
    with model.processed():
        assert modes == [module.training for module in hf_model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_contexts_that_end_in_another_order_put_everything_back() -> None:
    hf_model, model = gpt2()
    before = Snapshot(hf_model)
    first, second = model.processed(fold_ln=True), model.processed(center_unembed=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as when two threads process one model
    assert model.processing.center_unembed
    second.__exit__(None, None, None)
    before.assert_same()
    assert not model.processing.steps


def test_rewriting_for_good_inside_is_refused() -> None:
    hf_model, model = gpt2()
    before = Snapshot(hf_model)
    with model.processed(), pytest.raises(ProcessingError, match="Call it outside"):
        model.process_weights_()
    before.assert_same()


def test_heads_of_a_run_need_the_weights_of_that_run(tmp_path: Path) -> None:
    _, model = gpt2()
    cache = kept(model)
    factored = {**dict.fromkeys(STEPS, False), "refactor_factored_attn_matrices": True}
    with model.processed(**factored):
        inside = kept(model)
        assert inside.processed == ("refactor_factored_attn_matrices",)
        inside.get_full_resid_decomposition(check=True)
        torch.testing.assert_close(cache.decompose_resid(), inside.decompose_resid())
        with pytest.raises(InputError, match="processed by nothing then, by refactor"):
            cache.stack_head_results()  # its z is in another basis than W_O now
        inside.remove_batch_dim().save(tmp_path / "inside")
    cache.stack_head_results()
    with pytest.raises(InputError, match="by nothing now"):
        inside.get_neuron_results(0)
    again = ActivationCache.load(tmp_path / "inside", model)
    with pytest.raises(InputError, match="by nothing now"):
        again.get_full_resid_decomposition()
    with model.processed(**factored):
        again.get_full_resid_decomposition(check=True)


def kept(model: LensModel) -> ActivationCache:
    _, cache = model.run_with_cache(tokens()[:1])
    assert isinstance(cache, ActivationCache)
    return cache


# --- in place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom", "qwen3", "t5"])
def test_twice_is_once(name: str) -> None:
    model = tiny(name)
    once = model.process_weights_(refactor_factored_attn_matrices=None)
    weights = {key: value.detach().clone() for key, value in model.named_weights()}
    assert model.process_weights_(refactor_factored_attn_matrices=None) == once
    for key, value in model.named_weights():
        torch.testing.assert_close(value.detach(), weights[key], atol=1e-9, rtol=1e-7, msg=key)


def test_steps_in_any_order_keep_the_function() -> None:
    inputs = {"input_ids": tokens()}
    for order in (STEPS, STEPS[::-1], (STEPS[2], STEPS[0], STEPS[3], STEPS[1])):
        hf_model, model = gpt2()
        wanted = log_probs(hf_model, inputs)
        for step in order:
            model.process_weights_(**{**dict.fromkeys(STEPS, False), step: True})
        torch.testing.assert_close(log_probs(hf_model, inputs), wanted)
        assert model.processing.steps == STEPS
        model.process_weights_()
        assert not model.b_V.any()


def test_load_processes_only_where_it_is_asked_to() -> None:
    hf_model = build(Shape("gpt2"))
    before = Snapshot(hf_model)
    versions = [one._version for one in hf_model.parameters()]
    lensbridge.load(hf_model)
    before.assert_same()
    assert versions == [one._version for one in hf_model.parameters()]
    model = lensbridge.load(hf_model, fold_ln=True, center_unembed=True)
    assert model.processing.steps == ("fold_ln", "center_unembed")
    assert torch.equal(hf_model.transformer.ln_f.weight, torch.ones(24))
    with pytest.raises(ProcessingError, match="RMSNorm"):
        lensbridge.load(build(Shape("llama")), center_writing_weights=True)


def test_half_precision_is_computed_in_full_and_rounded_once() -> None:
    hf_model = build(Shape("llama", dtype=torch.bfloat16))
    layer = Layer(hf_model, "llama", 0)
    gain = layer.ln2.weight.detach().double()
    wanted = (layer.up.weight.detach().double() * gain).bfloat16()
    with lensbridge.load(hf_model).processed(fold_ln=True):
        assert torch.equal(layer.up.weight, wanted)


def test_the_check_can_be_switched_off() -> None:
    hf_model, model = gpt2()
    with counted(hf_model) as runs:
        with model.processed(check=False):
            assert runs == []
        with model.processed():
            assert runs


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    runs: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: runs.append(1))
    yield runs
    hook.remove()

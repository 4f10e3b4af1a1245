"""A lens follows its model: modules that are replaced after load are the ones that are read."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from tiny_models import CONTEXT, Layer, Shape, build, tokens
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

import lensbridge
from lensbridge.errors import ArchitectureMismatchError, HookError

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tokens()


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)


def read_by_hand(model: nn.Module, module: nn.Module, ids: Tensor = IDS) -> Tensor:
    """A module's output in a pass of the bare model."""
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, args, out: kept.append(out))
    try:
        model(ids)
    finally:
        handle.remove()
    return kept[0]


def inject(model: nn.Module) -> nn.Module:
    inject_adapter_in_model(lora(), model)
    return model


def wrap(model: nn.Module) -> nn.Module:
    return get_peft_model(model, lora())


def merge(model: nn.Module) -> nn.Module:
    return get_peft_model(model, lora()).merge_and_unload()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks
@pytest.mark.parametrize("change", [inject, wrap, merge])
def test_adapters_that_come_after_the_lens(change: Callable[[nn.Module], nn.Module]) -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    lens.run_with_cache(IDS)
    change(model)
    layer = Layer(model, "llama", 1)
    logits, cache = lens.run_with_cache(IDS)
    assert torch.equal(logits, model(IDS).logits)
    assert len(cache) == len(lens.run_with_cache(IDS)[1])
    q = read_by_hand(model, layer.qkv["q"])
    assert torch.equal(cache["q", 1].flatten(2), q)
    pre = read_by_hand(model, layer.up)
    assert torch.equal(cache["pre_linear", 1], pre)
    by_weights = cache["blocks.1.ln2.hook_out"] @ lens.W_in[1] + lens.b_in[1]
    torch.testing.assert_close(by_weights, pre, rtol=1e-4, atol=1e-5)


def test_adapters_inside_a_context_and_for_permanent_hooks() -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    bare = copy.deepcopy(model)

    def zero(value: Tensor, hook: Any) -> Tensor:
        return value * 0

    lens.add_hook(("mlp_out", 0), zero)
    inject(model)
    inject(bare)
    bare.load_state_dict(model.state_dict())
    bare.model.layers[0].mlp.register_forward_hook(lambda m, args, out: out * 0)
    assert torch.equal(model(IDS).logits, bare(IDS).logits)
    assert torch.equal(lens(IDS), bare(IDS).logits)
    lens.reset_hooks()
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    with lens.hooks([(("q", 1), zero)]):
        model(IDS)
        inject(model)
        found = model(IDS).logits
    layer = Layer(model, "llama", 1)
    handle = layer.qkv["q"].register_forward_hook(lambda m, args, out: out * 0)
    assert torch.equal(found, model(IDS).logits)
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_resized_embeddings() -> None:
    model = build(Shape("gpt2"))
    lens = lensbridge.load(model)
    before = lens.cfg.d_vocab
    model.resize_token_embeddings(before + 12, mean_resizing=False)
    assert lens.cfg.d_vocab == before + 12
    assert lens.W_E.shape[0] == lens.W_U.shape[1] == before + 12
    ids = torch.tensor([[1, before + 5, 3]])
    logits, cache = lens.run_with_cache(ids)
    assert torch.equal(logits, model(ids).logits)
    assert torch.equal(cache["embed"], model.transformer.wte(ids))


def test_a_replaced_mlp_and_replaced_layers() -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    model.model.layers[1].mlp = LlamaMLP(model.config)
    _, cache = lens.run_with_cache(IDS)
    assert torch.equal(cache["pre", 1], read_by_hand(model, model.model.layers[1].mlp.gate_proj))
    other = build(Shape("llama"), seed=3)
    model.model.layers[0] = other.model.layers[0]
    logits, cache = lens.run_with_cache(IDS)
    assert torch.equal(logits, model(IDS).logits)
    assert torch.equal(cache["resid_post", 0], read_by_hand(model, other.model.layers[0]))
    assert torch.equal(lens.W_O[0].flatten(0, 1), other.model.layers[0].self_attn.o_proj.weight.T)


def test_layers_that_are_taken_out_or_appended() -> None:
    model = build(Shape("gpt2", layers=3))
    lens = lensbridge.load(model)
    model.transformer.h = model.transformer.h[:2]
    model.config.n_layer = 2
    logits, cache = lens.run_with_cache(IDS)
    assert torch.equal(logits, model(IDS).logits)
    assert lens.cfg.n_layers == 2
    assert ("resid_post", 2) not in cache


def test_what_does_not_fit_any_more_is_said() -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    model.model.layers[1].mlp = nn.Identity()
    with pytest.raises(ArchitectureMismatchError, match="mlp was LlamaMLP and is Ident"):
        lens.run_with_cache(IDS)
    with pytest.raises(ArchitectureMismatchError, match="load the model again"):
        _ = lens.W_in


def test_a_permanent_hook_whose_point_is_gone() -> None:
    model = build(Shape("gpt2", layers=3))
    lens = lensbridge.load(model)
    lens.add_hook(("resid_post", 2), lambda value, hook: None)
    model.transformer.h = model.transformer.h[:2]
    model.config.n_layer = 2
    with pytest.raises(HookError, match=r"no blocks\.2\.hook_resid_post any more"):
        lens(IDS)
    lens.reset_hooks()
    assert torch.equal(lens(IDS), model(IDS).logits)


def test_context_length_is_that_of_the_model() -> None:
    assert lensbridge.load(build(Shape("gpt2"))).cfg.n_ctx == CONTEXT

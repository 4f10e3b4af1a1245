"""What heads give where a norm is behind attention (Gemma 2), beside hooks on the bare model."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

import lensbridge
from lensbridge.compat.transformer_lens import HookedTransformer
from lensbridge.errors import AbsentPointError

IDS = torch.tensor([[5, 17, 3, 40, 9], [1, 2, 8, 8, 30]])
POINT = "blocks.1.attn.hook_result"
HEADS, D_HEAD = 4, 6


@pytest.fixture(scope="module")
def native() -> Any:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, hidden_size=20, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, head_dim=D_HEAD, intermediate_size=28, max_position_embeddings=16,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "norm" in name:
                one.uniform_(-0.5, 0.5)
    return model


@pytest.fixture(scope="module")
def model(native: Any) -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing("tiny", hf_model=native, device="cpu")


def by_head(native: Any, z: Tensor) -> Tensor:
    """Each head's columns of the output projection, times its part of the projection's input."""
    weight = native.model.layers[1].self_attn.o_proj.weight.view(-1, HEADS, D_HEAD)
    return torch.einsum("bphd,mhd->bphm", z.view(*z.shape[:-1], HEADS, D_HEAD), weight)


def test_a_result_is_the_value_before_the_norm(native: Any, model: HookedTransformer) -> None:
    given: list[Tensor] = []
    projection = native.model.layers[1].self_attn.o_proj
    with projection.register_forward_pre_hook(lambda _, args: given.append(args[0])):
        native(IDS)
    wanted = by_head(native, given[0])
    plain = model.run_with_cache(IDS)[1]
    assert POINT not in plain
    _, cache = model.run_with_cache(IDS, names_filter=lambda name: name.endswith("hook_result"))
    assert list(cache) == [POINT.replace("1", "0"), POINT]
    named = model.run_with_cache(IDS, names_filter=POINT)[1]
    for found in (cache[POINT], cache["result", 1], named[POINT]):
        torch.testing.assert_close(found, wanted)
    normed = model.blocks[1].ln1_post(cache["result", 1].sum(2))
    torch.testing.assert_close(normed, plain["attn_out", 1])
    lens = model.lens.run_with_cache(IDS, names_filter=[POINT, "blocks.1.attn.hook_head_out"])[1]
    torch.testing.assert_close(lens["blocks.1.attn.hook_head_out"], wanted)
    torch.testing.assert_close(lens[POINT].sum(2), plain["attn_out", 1])
    assert not [name for name in model.hook_dict if "head_out" in name]
    assert len(model.hook_dict) == len(list(model.hook_dict))


def test_an_edit_goes_through_the_norm(native: Any, model: HookedTransformer) -> None:
    shares = torch.tensor([2.0, 0.0, -1.0, 0.5])

    def edit(value: Tensor, hook: Any) -> Tensor:
        assert hook.name == POINT
        return value * shares[:, None]

    def edit_native(module: Any, args: Any, output: Tensor) -> Tensor:
        return (by_head(native, args[0]) * shares[:, None]).sum(2)

    projection = native.model.layers[1].self_attn.o_proj
    with projection.register_forward_hook(edit_native):
        wanted = native(IDS).logits
    torch.testing.assert_close(model.run_with_hooks(IDS, fwd_hooks=[(POINT, edit)]), wanted)
    assert not torch.allclose(wanted, native(IDS).logits, atol=1e-2)


def test_gradients_are_those_of_what_the_norm_reads(native: Any, model: HookedTransformer) -> None:
    grads: list[Tensor] = []
    with model.hooks(bwd_hooks=[(POINT, lambda grad, hook: grads.append(grad.clone()))]):
        model(IDS).square().sum().backward()
    read: list[Tensor] = []

    def watch(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        read.append(output)

    with native.model.layers[1].self_attn.o_proj.register_forward_hook(watch):
        native(IDS).logits.square().sum().backward()
    wanted = read[0].grad
    assert wanted is not None
    torch.testing.assert_close(grads[0], wanted.unsqueeze(2).expand_as(grads[0]))
    native.zero_grad()


def test_others_lack_the_point() -> None:
    demo = lensbridge.load("demo")
    with pytest.raises(AbsentPointError, match="no norm after that branch"):
        demo.explain("blocks.0.attn.hook_head_out")


def test_the_config_says_where_norms_are(model: HookedTransformer) -> None:
    assert model.cfg.use_normalization_before_and_after
    assert model.cfg.attn_types == ["local", "global"]
    assert model.cfg.attn_scale == 16.0
    assert not HookedTransformer.from_pretrained("demo").cfg.use_normalization_before_and_after

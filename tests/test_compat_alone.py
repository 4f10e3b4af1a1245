"""Attention that is called by itself, against the native module in a run of the bare model."""

from typing import Any

import pytest
import torch
import transformers
from tiny_models import FAMILIES, Layer, Shape, build, tokens
from torch import Tensor, nn

from lensbridge.compat.transformer_lens import HookedEncoder, HookedTransformer
from lensbridge.conformance.tiny import tiny_from
from lensbridge.errors import HookError, InputError


def opened(hf_model: Any) -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing("x", hf_model=hf_model)


def attention_in_a_run(hf_model: Any, attn: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the native attention reads and gives in a run of the bare model."""
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])
        kept.append(output if isinstance(output, Tensor) else output[0])

    attached = attn.register_forward_hook(keep, with_kwargs=True)
    hf_model(ids)
    attached.remove()
    return kept[0].detach(), kept[1].detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_by_itself_is_that_of_a_run(family: str) -> None:
    shape = Shape(family)
    hf_model = build(shape)
    native = Layer(hf_model, shape.family, 1).attn
    given, wanted = attention_in_a_run(hf_model, native, tokens())
    attn = opened(hf_model).blocks[1].attn
    assert torch.equal(attn(given), wanted)
    assert torch.equal(attn(given, given, given.clone()), wanted)
    named = {"query_input": given, "key_input": given, "value_input": given}
    assert torch.equal(attn(**named, past_kv_cache_entry=None), wanted)
    assert not native._forward_pre_hooks


def test_gradients_go_through_and_hooks_do_not_act() -> None:
    shape = Shape("llama")
    hf_model = build(shape)
    model = opened(hf_model)
    given, wanted = attention_in_a_run(hf_model, Layer(hf_model, shape.family, 0).attn, tokens())
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: value * 0)
    leaf = given.clone().requires_grad_()
    found = model.blocks[0].attn(leaf)
    assert torch.equal(found, wanted)
    direction, step = torch.randn_like(given), 1e-3
    slope = torch.autograd.grad(found.square().sum(), leaf)[0]
    with torch.no_grad():
        sides = [model.blocks[0].attn(given + one * step * direction) for one in (1, -1)]
    change = (sides[0].square().sum() - sides[1].square().sum()) / (2 * step)
    torch.testing.assert_close((slope * direction).sum(), change, rtol=2e-2, atol=2e-2)


def test_what_attention_by_itself_cannot_do() -> None:
    shape = Shape("gpt2")
    attn = opened(build(shape)).blocks[0].attn
    value = torch.randn(1, 4, opened(build(shape)).cfg.d_model)
    with pytest.raises(InputError, match="reads one input"):
        attn(value, value + 1, value)
    with pytest.raises(InputError, match="takes no attention_mask"):
        attn(value, value, value, attention_mask=torch.ones(1, 4))
    with pytest.raises(InputError, match="more than three"):
        attn(value, value, value, None)


@pytest.mark.parametrize("kind", ["BloomForCausalLM", "BertForMaskedLM"])
def test_modules_that_add_the_stream_are_not_attention_alone(kind: str) -> None:
    hf_model = tiny_from(getattr(transformers, kind), {}, torch.float32, "eager", 0)
    cls = HookedTransformer if kind.startswith("Bloom") else HookedEncoder
    model = cls.from_pretrained("x", hf_model=hf_model)
    attn = model.blocks[0].attn
    with pytest.raises(InputError, match=r"cannot be run alone.* adds the stream"):
        attn(torch.randn(1, 4, model.cfg.d_model))
    with pytest.raises(HookError, match="adds the stream"):
        model.blocks[0].attn = nn.Identity()


def test_a_bias_that_the_model_adds_outside_is_not_left_out() -> None:
    kind = transformers.GPTNeoXJapaneseForCausalLM
    model = opened(tiny_from(kind, {}, torch.float32, "eager", 0))
    with pytest.raises(InputError, match="adds a bias"):
        model.blocks[-1].attn(torch.randn(1, 4, model.cfg.d_model))

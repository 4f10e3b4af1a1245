"""Runs without logits and loss end after the last layer that anybody looks into."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import SPECIAL, VOCAB, Shape, build
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import lensbridge
from lensbridge.errors import HookNeverFiredError

IDS = torch.tensor([[1, 5, 3, 2], [4, 2, 2, 7]])
LAYERS = 4
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}


@pytest.fixture(params=BLOCKS)
def opened(request: pytest.FixtureRequest) -> Any:
    hf = build(Shape(request.param, layers=LAYERS))
    return lensbridge.load(hf), hf.get_submodule(BLOCKS[request.param])


@contextmanager
def counted(layers: Any) -> Iterator[list[int]]:
    """Which layers run, noted in their forwards: a PyTorch hook would count as a listener."""
    ran: list[int] = []

    def noting(i: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            ran.append(i)
            return forward(*args, **kwargs)

        return run

    for i, layer in enumerate(layers):
        layer.forward = noting(i, layer.forward)
    try:
        yield ran
    finally:
        for layer in layers:
            del layer.forward


@pytest.mark.parametrize("name", ["resid_pre", "attn_out", "pattern", "resid_mid", "resid_post"])
def test_a_cache_ends_at_its_last_layer_and_is_the_same(opened: Any, name: str) -> None:
    model, layers = opened
    asked = [(name, 0), (name, 1)]
    _, whole = model.run_with_cache(IDS, asked)
    with counted(layers) as ran:
        nothing, cache = model.run_with_cache(IDS, asked, return_type=None)
    assert ran == [0, 1]
    assert nothing is None
    assert list(cache) == list(whole)
    for key, value in whole.items():
        assert torch.equal(cache[key], value), key


def test_the_last_layer_and_the_embedding(opened: Any) -> None:
    model, layers = opened
    with counted(layers) as ran:
        model.run_with_cache(IDS, ("resid_post", -1), return_type=None)
        model.run_with_cache(IDS, "hook_embed", return_type=None)
    assert ran == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("name", ["ln_final.hook_out", "hook_logits"])
def test_points_behind_the_layers_run_all_of_them(opened: Any, name: str) -> None:
    model, layers = opened
    wanted = model.run_with_cache(IDS, name)[1][name]
    with counted(layers) as ran:
        _, cache = model.run_with_cache(IDS, [name, "blocks.0.hook_resid_pre"], return_type=None)
    assert ran == [0, 1, 2, 3]
    assert torch.equal(cache[name], wanted)


def test_hooks_beside_a_cache_are_reached(opened: Any) -> None:
    model, layers = opened
    seen: list[str] = []

    def note(value: Tensor, hook: Any) -> None:
        seen.append(hook.name)

    asked: dict[str, Any] = {"names_filter": ("resid_pre", 0), "return_type": None}
    with counted(layers) as ran, model.hooks(fwd_hooks=[(("resid_post", 2), note)]):
        model.run_with_cache(IDS, **asked)
    assert ran == [0, 1, 2]
    ran.clear()
    handle = model.add_hook(("resid_mid", 1), note)
    with counted(layers) as ran:
        model.run_with_cache(IDS, **asked)
    assert ran == [0, 1]
    handle.remove()
    with counted(layers) as ran:
        model.run_with_hooks(IDS, fwd_hooks=[(("mlp_out", 3), note)], return_type=None)
    assert ran == [0, 1, 2, 3]
    assert seen == ["blocks.2.hook_resid_post", "blocks.1.hook_resid_mid", "blocks.3.hook_mlp_out"]


def test_an_edit_before_the_last_layer_is_in_the_cache(opened: Any) -> None:
    model, _ = opened
    with model.hooks(fwd_hooks=[(("resid_pre", 1), lambda value, hook: value * 2)]):
        _, whole = model.run_with_cache(IDS, ("resid_post", 1))
        _, cache = model.run_with_cache(IDS, ("resid_post", 1), return_type=None)
    assert torch.equal(cache["resid_post", 1], whole["resid_post", 1])
    _, plain = model.run_with_cache(IDS, ("resid_post", 1), return_type=None)
    assert not torch.equal(plain["resid_post", 1], whole["resid_post", 1])


def test_pytorch_hooks_of_others_and_key_value_caches_get_the_whole_run(opened: Any) -> None:
    model, layers = opened
    seen: list[nn.Module] = []
    asked: dict[str, Any] = {"names_filter": ("resid_pre", 0), "return_type": None}
    handle = layers[3].register_forward_hook(lambda module, args, out: seen.append(module))
    model.run_with_cache(IDS, **asked)
    handle.remove()
    assert seen == [layers[3]]
    with counted(layers) as ran:
        early = layers[0].register_forward_pre_hook(lambda module, args: seen.append(module))
        model.run_with_cache(IDS, **asked)
        early.remove()
    assert ran == [0]
    assert seen[1:] == [layers[0]]
    past = DynamicCache(config=model.hf_model.config)
    model.run_with_cache(IDS, **asked, past_key_values=past)
    assert [past.get_seq_length(i) for i in range(LAYERS)] == [4] * LAYERS


def test_hooks_that_transformers_leaves_are_nobodys(opened: Any) -> None:
    model, layers = opened
    model.hf_model(IDS, output_hidden_states=True)
    with counted(layers) as ran:
        model.run_with_cache(IDS, ("resid_post", 1), return_type=None)
    assert ran == [0, 1]


def test_a_run_that_nobody_listens_to_runs_the_layers(opened: Any) -> None:
    model, layers = opened
    with counted(layers) as ran:
        assert model(IDS, return_type=None) is None
        model(IDS)
    assert ran == [0, 1, 2, 3] * 2


def test_gradients_between_activations_need_no_later_layer(opened: Any) -> None:
    model, layers = opened

    def of(cache: Any) -> Tensor:
        return cache["resid_post", 1][:, -1].sum()

    with counted(layers) as ran:
        found = model.gradients(IDS, ("resid_pre", 1), of=of, at=("resid_post", 1))
    assert ran == [0, 1]
    streams: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: Any, kwargs: Any) -> Any:
        streams["in"] = args[0].detach().requires_grad_()
        return (streams["in"], *args[1:]), kwargs

    def keep_out(module: nn.Module, args: Any, out: Any) -> None:
        streams["out"] = out if isinstance(out, Tensor) else out[0]

    handles = [
        layers[1].register_forward_pre_hook(keep, with_kwargs=True),
        layers[1].register_forward_hook(keep_out),
    ]
    model.hf_model(IDS)
    for handle in handles:
        handle.remove()
    (wanted,) = torch.autograd.grad(streams["out"][:, -1].sum(), streams["in"])
    assert torch.equal(found.gradients["resid_pre", 1], wanted)


def test_no_hook_is_left_and_an_error_says_where_the_run_ended(opened: Any) -> None:
    model, layers = opened
    model.run_with_cache(IDS, ("resid_post", 1), return_type=None)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.hf_model.modules())
    path = next(path for path, one in model.hf_model.named_modules() if one is layers[1])
    with pytest.raises(HookNeverFiredError, match=rf"to {path}, behind which nobody looks"):
        model.run_with_cache(
            torch.zeros(1, 4, model.cfg.d_model),
            [("resid_post", 0), ("resid_post", 1)],
            return_type=None,
            start_at_layer=1,
        )


def test_layers_that_share_a_module_run_to_the_end() -> None:
    sizes = {"vocab_size": VOCAB, "num_hidden_layers": 2, "num_attention_heads": 2, **SPECIAL}
    hf = AlbertForMaskedLM(
        AlbertConfig(hidden_size=8, embedding_size=6, intermediate_size=12, **sizes)
    ).eval()
    model = lensbridge.load(hf)
    first, last = (f"blocks.{i}.hook_resid_pre" for i in (0, 1))
    _, cache = model.run_with_cache(IDS, [first, last], return_type=None)
    with counted([hf.predictions]) as ran:
        _, early = model.run_with_cache(IDS, first, return_type=None)
    assert ran == [0]
    assert torch.equal(early[first], cache[first])


def test_an_encoder_runs_before_its_decoder() -> None:
    hf = T5ForConditionalGeneration(
        T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, vocab_size=VOCAB)
    ).eval()
    model = lensbridge.load(hf)
    layers = [*hf.encoder.block, *hf.decoder.block]
    names = {
        "encoder.0.hook_resid_post": [0],
        "encoder.1.attn.hook_z": [0, 1],
        "decoder.0.cross_attn.hook_pattern": [0, 1, 2],
        "decoder.1.hook_resid_pre": [0, 1, 2, 3],
        "hook_embed": [0, 1, 2, 3],
    }
    given: dict[str, Any] = {"decoder_input_ids": IDS[:, :3]}
    with torch.no_grad():
        _, whole = model.run_with_cache(IDS, list(names), **given)
    for name, wanted in names.items():
        with counted(layers) as ran:
            _, cache = model.run_with_cache(IDS, name, return_type=None, **given)
        assert ran == wanted, name
        assert torch.equal(cache[name], whole[name]), name


def test_a_model_of_pictures_and_text_ends_in_its_text_layers() -> None:
    vision = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    text = {**vision, "vocab_size": VOCAB, "num_attention_heads": 2, **SPECIAL}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, num_attention_heads=2, image_size=8, patch_size=4),
        text_config=LlamaConfig(**text),
        image_token_index=9,
        vision_feature_layer=-1,
    )
    hf = LlavaForConditionalGeneration(config).eval()
    model = lensbridge.load(hf)
    layers, tower = hf.model.language_model.layers, hf.model.vision_tower.encoder.layers
    ids = torch.tensor([[1, 9, 9, 9, 9, 5]])
    pixels = torch.rand(1, 3, 8, 8)
    given: dict[str, Any] = {"input_ids": ids, "pixel_values": pixels}
    name, seen = "blocks.0.hook_resid_post", "vision.blocks.0.hook_resid_post"
    _, whole = model.run_with_cache(given, [name, seen])
    with counted(layers) as ran, counted(tower) as looked:
        _, cache = model.run_with_cache(given, name, return_type=None)
    assert (ran, looked) == ([0], [0, 1][: len(looked)])
    assert torch.equal(cache[name], whole[name])
    _, cache = model.run_with_cache(given, [name, seen], return_type=None)
    assert torch.equal(cache[seen], whole[seen])

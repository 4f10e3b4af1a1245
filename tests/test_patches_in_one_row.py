"""Vision towers of Qwen-VL: all patches of all images in one row, without a batch axis."""

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lensbridge_adapters.qwen2_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.inputs.random import inputs_for
from lensbridge.testing import tiny_model

DOWN = {"qwen2_vl": "mlp.fc2", "qwen2_5_vl": "mlp.down_proj", "qwen3_vl": "mlp.linear_fc2"}
DESCRIBED = {one.name: one for one in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)}
AT = "vision.blocks.0."
EACH = pytest.mark.parametrize("name", list(DESCRIBED))
KERNELS = pytest.mark.parametrize("kernel", ["sdpa", "eager"])


@cache
def opened(name: str, kernel: str = "sdpa") -> LensModel:
    return lensbridge.load(tiny_model(DESCRIBED[name], kernel=kernel))


@cache
def given(name: str) -> dict[str, Tensor]:
    return inputs_for(opened(name).hf_model)


def of_bare(model: LensModel, path: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a module of the first layer of the bare tower reads and returns."""
    found: list[Any] = []
    module = model.hf_model.get_submodule(f"model.visual.blocks.0.{path}")
    handle = module.register_forward_hook(lambda _, args, out: found.append((args[0], out)))
    try:
        with torch.no_grad():
            model.hf_model(**inputs)
    finally:
        handle.remove()
    [call] = found
    return call


@EACH
def test_heads_and_neurons_are_what_the_modules_read_and_return(name: str) -> None:
    model, inputs = opened(name), given(name)
    _, found = model.run_with_cache(inputs)
    n = model.hf_model.config.vision_config.num_heads
    _, projected = of_bare(model, "attn.qkv", inputs)
    q, k, v = projected.view(len(projected), 3, n, -1).unbind(1)
    for letter, wanted in (("q", q), ("k", k), ("v", v)):
        assert torch.equal(found[f"{AT}attn.hook_{letter}"], wanted)
    mixed, added = of_bare(model, "attn.proj", inputs)
    assert torch.equal(found[f"{AT}attn.hook_z"].flatten(-2), mixed)
    assert torch.equal(found[f"{AT}hook_attn_out"], added)
    neurons, out = of_bare(model, DOWN[name], inputs)
    assert torch.equal(found[f"{AT}mlp.hook_post"], neurons)
    assert torch.equal(found[f"{AT}hook_mlp_out"], out)
    assert torch.equal(found[f"{AT}ln2.hook_out"], of_bare(model, "norm2", inputs)[1])


@EACH
def test_patterns_are_those_of_the_kernels_one_sequence_after_the_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = opened(name, "eager"), given(name)
    native: list[Tensor] = []
    softmax = F.softmax

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        native.append(softmax(*args, **kwargs))
        return native[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", noting)
        with torch.no_grad():
            model.hf_model(**inputs)
    heads = model.hf_model.config.vision_config.num_heads
    _, found = model.run_with_cache(inputs)
    pattern = found[f"{AT}attn.hook_pattern"]
    start, parts = 0, iter(native)
    while start < pattern.shape[-1]:
        part = next(parts)
        assert part.shape[:2] == (1, heads)
        own = slice(start, start + part.shape[-1])
        assert torch.equal(pattern[:, own, own], part[0])
        assert pattern[:, own].count_nonzero() == part[0].count_nonzero()
        start = own.stop
    assert start == pattern.shape[-1]
    seen = found[f"{AT}attn.hook_attn_scores"].isfinite()
    assert torch.equal(seen, pattern > 0)
    assert not bool(seen.all())


@KERNELS
@EACH
def test_an_edited_pattern_can_look_into_other_images(name: str, kernel: str) -> None:
    model, inputs = opened(name, kernel), given(name)
    with model.hooks(
        fwd_hooks=[(f"{AT}attn.hook_pattern", lambda value, hook: torch.full_like(value, 0.025))]
    ):
        _, found = model.run_with_cache(inputs)
    values = found[f"{AT}attn.hook_v"]
    assert len(values) == 40
    everywhere = values.mean(0, keepdim=True).expand_as(values)
    torch.testing.assert_close(found[f"{AT}attn.hook_z"], everywhere)


@KERNELS
@EACH
def test_scores_of_one_patch_change_that_patch(name: str, kernel: str) -> None:
    model, inputs = opened(name, kernel), given(name)
    _, before = model.run_with_cache(inputs)

    def to_itself(value: Tensor, hook: Any) -> None:
        value[:, 20, 20] = 1e4

    with model.hooks(fwd_hooks=[(f"{AT}attn.hook_attn_scores", to_itself)]):
        _, after = model.run_with_cache(inputs)
    z, v = f"{AT}attn.hook_z", f"{AT}attn.hook_v"
    torch.testing.assert_close(after[z][20], before[v][20])
    others = [i for i in range(40) if i != 20]
    torch.testing.assert_close(after[z][others], before[z][others])


@KERNELS
def test_keys_after_rotary_are_what_the_kernels_read(kernel: str) -> None:
    """Scores are products of what is read there, and an edit of it is what they are made of."""
    model, inputs = opened("qwen2_vl", kernel), given("qwen2_vl")
    edit = (f"{AT}attn.hook_rot_k", lambda value, hook: value * 2)
    _, before = model.run_with_cache(inputs)
    with model.hooks(fwd_hooks=[edit]):
        _, after = model.run_with_cache(inputs)
    scores = f"{AT}attn.hook_attn_scores"
    seen = before[scores].isfinite()
    torch.testing.assert_close(after[scores][seen], before[scores][seen] * 2)


def test_text_alone_does_not_run_the_tower() -> None:
    model = opened("qwen2_vl")
    _, found = model.run_with_cache({"input_ids": torch.tensor([[5, 9, 17, 3]])})
    assert not any(name.startswith("vision.") for name in found)


def test_the_batch_is_that_of_the_text() -> None:
    model, inputs = opened("qwen2_vl"), given("qwen2_vl")
    _, found = model.run_with_cache(inputs)
    one = found.apply_slice_to_batch_dim(1)
    assert torch.equal(one["blocks.0.attn.hook_q"], found["blocks.0.attn.hook_q"][1])
    assert torch.equal(one["projector.hook_out"], found["projector.hook_out"])
    assert torch.equal(one[f"{AT}attn.hook_q"], found[f"{AT}attn.hook_q"])

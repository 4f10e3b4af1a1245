"""What multiplies the stream and the branches is found by what models do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from lensbridge_adapters import lensbridge_architectures
from torch import Tensor, nn

import lensbridge
from lensbridge.derive import derive, derive_and_check
from lensbridge.spec import Architecture, Block
from lensbridge.testing import tiny_model

IDS = torch.tensor([[5, 9, 7, 11, 6]])
VISION = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 28,
    "image_size": 12, "patch_size": 4,
}  # fmt: skip


def built_in(name: str) -> Architecture:
    return next(one for one in lensbridge_architectures() if name in one.classes)


def blocks(architecture: Architecture) -> tuple[Block, ...]:
    return architecture.block if isinstance(architecture.block, tuple) else (architecture.block,)


@pytest.mark.parametrize("name", ["DogeForCausalLM", "MiniMaxForCausalLM"])
def test_points_are_those_of_the_built_in_description_bit_for_bit(name: str) -> None:
    model = tiny_model(built_in(name), name)
    derivation = derive(model)
    assert derivation.architecture is not None
    assert not derivation.missing
    theirs, ours = (
        lensbridge.load(model, architecture=one)
        for one in (replace(built_in(name), overrides=None), derivation.architecture)
    )
    shared = set(ours.hook_names) & set(theirs.hook_names)
    assert set(theirs.hook_names) - shared <= {n for n in theirs.hook_names if ".mixer." in n}
    assert {n for n in shared if n.endswith(("hook_pattern", "hook_resid_mid", "hook_attn_out"))}
    _, a = theirs.run_with_cache(IDS, names_filter=list(shared))
    _, b = ours.run_with_cache(IDS, names_filter=list(shared))
    assert [point for point in shared if not torch.equal(a[point], b[point])] == []


def test_fields_of_multipliers_are_named() -> None:
    doge, minimax = (
        derive(tiny_model(built_in(name), name)).architecture
        for name in ("DogeForCausalLM", "MiniMaxForCausalLM")
    )
    assert doge is not None
    assert minimax is not None
    (block,) = blocks(doge)
    assert block.attn is not None
    assert block.mlp is not None
    assert block.attn.skip_scale == "input_residual"
    assert block.attn.mask_from_v
    assert block.mlp.skip_scale == "post_attention_residual"
    softmax, linear = blocks(minimax)
    assert softmax.attn is not None
    assert linear.mixer is not None
    assert softmax.mlp is not None
    assert softmax.attn.skip_scale == "full_attn_alpha_factor"
    assert linear.mixer.skip_scale == "linear_attn_alpha_factor"
    assert softmax.mlp.skip_scale == "mlp_alpha_factor"


def test_a_published_alpha_is_found() -> None:
    name = "MiniMaxForCausalLM"
    fields = ("full_attn_alpha_factor", "mlp_alpha_factor")
    sizes: dict[str, Any] = dict.fromkeys(fields, 3.5565588200778455)
    model = tiny_model(built_in(name), name, **sizes)
    derivation = derive(model)
    assert derivation.architecture is not None
    (softmax, _) = blocks(derivation.architecture)
    assert softmax.attn is not None
    assert softmax.attn.skip_scale in sizes


def test_layer_scale_of_a_block_is_found() -> None:
    config = transformers.BeitConfig(**VISION)
    model = transformers.BeitForImageClassification(config).eval()
    architecture = derive(model).architecture
    assert architecture is not None
    (block,) = blocks(architecture)
    assert block.attn is not None
    assert block.mlp is not None
    assert (block.attn.scale, block.mlp.scale) == ("lambda_1", "lambda_2")
    read = lensbridge.load(model, architecture=architecture)
    pixels = torch.randn(2, 3, 12, 12)
    _, cache = read.run_with_cache(pixels)
    raw: list[Tensor] = []
    layer: Any = model.beit.layers[1]
    handle = layer.attention.register_forward_hook(lambda m, args, output: raw.append(output[0]))
    with torch.no_grad():
        model(pixels)
    handle.remove()
    assert torch.equal(cache["attn_out", 1], raw[0] * layer.lambda_1)


@pytest.mark.parametrize("name", ["FalconH1ForCausalLM", "MiMoV2FlashForCausalLM"])
def test_multipliers_inside_attention_are_found(name: str) -> None:
    derived = derive(tiny_model(built_in(name), name)).architecture
    assert derived is not None
    ours, theirs = (
        {(a.in_scale, a.k_scale, a.v_scale) for a in (one.attn for one in blocks(each)) if a}
        for each in (derived, built_in(name))
    )
    assert ours == theirs


def test_multipliers_inside_an_mlp_are_found() -> None:
    name = "FalconH1ForCausalLM"
    model = tiny_model(built_in(name), name, mlp_multipliers=[0.9, 0.77])
    derivation = derive(model)
    assert derivation.architecture is not None
    assert not derivation.missing
    (ours,), (theirs,) = blocks(derivation.architecture), blocks(built_in(name))
    assert ours.mlp == theirs.mlp


class Gated(nn.Module):
    """A layer whose branch is multiplied by two parameters, and its stream by one and a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.ls = nn.Parameter(torch.rand(width) + 0.5)
        self.gate = nn.Parameter(torch.tensor([0.7]))
        self.keep = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.down(torch.relu(self.up(self.norm(x))))
        return 0.5 * self.keep * x + self.ls * self.gate * branch


class Odd(nn.Module):
    """A plain module with gated layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, width)
        self.layers = nn.ModuleList(Gated(width) for _ in range(2))
        self.head = nn.Linear(width, 31, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_products_of_parameters_and_numbers_are_found() -> None:
    torch.manual_seed(0)
    model = Odd().eval()
    architecture = derive_and_check(model)
    (block,) = blocks(architecture)
    assert block.mlp is not None
    assert (block.mlp.scale, block.mlp.skip_scale) == ("ls * gate", "keep * 0.5")
    _, cache = lensbridge.load(model, architecture=architecture).run_with_cache(IDS)
    layer: Any = model.layers[1]
    x = cache["resid_pre", 1]
    branch = layer.down(torch.relu(layer.up(layer.norm(x)))) * layer.gate * layer.ls
    torch.testing.assert_close(cache["mlp_out", 1], branch)
    torch.testing.assert_close(cache["resid_post", 1], x * layer.keep * 0.5 + branch)

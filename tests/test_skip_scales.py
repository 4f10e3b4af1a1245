"""Multipliers of the stream and of values, and other words that few architectures need."""

from dataclasses import replace

import pytest
import torch
from lensbridge_adapters.doge import DOGE
from lensbridge_adapters.llama import LLAMA
from lensbridge_adapters.mimo_v2_flash import MIMO_V2_FLASH
from lensbridge_adapters.minimax import MINIMAX
from torch import Tensor
from transformers.models.llama import modeling_llama

import lensbridge
from lensbridge.conformance.mutation import survivors
from lensbridge.errors import LoadError
from lensbridge.spec import Architecture, Attention, FusedQKV
from lensbridge.tensors import layouts
from lensbridge.testing import CHECKS, conformance, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 9, 7, 11, 3, 8], [2, 4, 6, 1, 9, 10]])
ALPHAS = {
    "full_attn_alpha_factor": 3.5566,
    "linear_attn_alpha_factor": 1.7,
    "mlp_alpha_factor": 0.7,
}


def loaded(architecture: Architecture, **fields: float) -> lensbridge.LensModel:
    model = lensbridge.load(tiny_model(architecture, dtype=torch.float64, **fields))
    assert model.architecture == architecture
    return model


@pytest.mark.parametrize(
    ("architecture", "fields"), [(DOGE, {}), (MINIMAX, ALPHAS)], ids=["doge", "minimax"]
)
def test_scaled_terms_sum_to_the_stream(
    architecture: Architecture, fields: dict[str, float]
) -> None:
    _, cache = loaded(architecture, **fields).run_with_cache(IDS)
    for layer in (1, 2):
        terms = cache.decompose_resid(layer)
        point = ("resid_pre", 1) if layer == 1 else ("resid_post", 1)
        torch.testing.assert_close(terms.sum(0), cache[point], rtol=1e-5, atol=1e-5)
    heads = cache.stack_head_results(2, incl_remainder=True)
    torch.testing.assert_close(heads.sum(0), cache["resid_post", 1], rtol=1e-5, atol=1e-5)


def test_the_stream_is_what_the_model_multiplies() -> None:
    model = loaded(DOGE)
    layer = model.hf_model.model.layers[1]
    seen: list[Tensor] = []
    handle = layer.self_attn.register_forward_hook(lambda _, args, out: seen.append(out[0]))
    _, cache = model.run_with_cache(IDS)
    handle.remove()
    wanted = layer.input_residual * cache["resid_pre", 1] + seen[0]
    torch.testing.assert_close(cache["resid_mid", 1], wanted.detach())


def test_values_are_scaled_as_the_kernel_reads_them() -> None:
    model = loaded(MIMO_V2_FLASH)
    _, cache = model.run_with_cache(IDS)
    attn = model.hf_model.model.layers[0].self_attn
    raw = attn.v_proj(cache["blocks.0.ln1.hook_out"])
    shape = cache["v", 0].shape
    torch.testing.assert_close(cache["v", 0], (raw.view(shape) * attn.v_scale).detach())


@pytest.mark.matrix
@pytest.mark.parametrize("architecture", [DOGE, MIMO_V2_FLASH], ids=["doge", "mimo"])
def test_wrong_descriptions_with_these_words_are_rejected(architecture: Architecture) -> None:
    assert not survivors(architecture)


class TwoFactors(modeling_llama.LlamaDecoderLayer):
    """A layer that adds attention times two parameters and a number for its index."""

    def __init__(self, config: object, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.gate = torch.nn.Parameter(torch.tensor(0.7))
        self.ls1 = torch.nn.Parameter(torch.ones(config.hidden_size))  # type: ignore[attr-defined]
        self.depth = 1 / (1 + layer_idx)

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        out, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        mid = hidden_states + self.gate * self.ls1 * self.depth * out
        return mid + self.mlp(self.post_attention_layernorm(mid))


def scaled(scale: str) -> Architecture:
    attn = LLAMA.block.attn
    assert isinstance(attn, Attention)
    return replace(LLAMA, block=replace(LLAMA.block, attn=replace(attn, scale=scale)))


def test_a_scale_is_a_product_of_parameters_and_expressions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(modeling_llama, "LlamaDecoderLayer", TwoFactors)
    right = scaled("ls1 * gate * 1 / (1 + layer_index)")
    assert conformance(right, classes=["LlamaForCausalLM"]).passed
    adds_up = [check for check in CHECKS if check.name == "the stream adds up"]
    for wrong in ("ls1 * gate", "gate * 1 / (1 + layer_index)", "ls1 * 1 / (1 + layer_index)"):
        report = conformance(scaled(wrong), classes=["LlamaForCausalLM"], checks=adds_up)
        assert report.failures, wrong


def test_unknown_words_in_a_scale_are_told() -> None:
    with pytest.raises(LoadError, match=r"LlamaConfig.* has no 'layer'"):
        lensbridge.load(tiny_model(LLAMA), architecture=scaled("1 + layer"))


def test_a_parallel_block_multiplies_its_stream_once() -> None:
    block = replace(DOGE.block, residual="parallel")
    with pytest.raises(LoadError, match="give skip_scale to attention"):
        lensbridge.load(tiny_model(DOGE), architecture=replace(DOGE, block=block))


@pytest.mark.parametrize("order", ["qkv", "kvq", "vqk"])
def test_the_three_stand_in_any_order(order: str) -> None:
    sizes = {"q": 4 * 8, "k": 2 * 8, "v": 2 * 8}
    parts = {role: torch.randn(3, width) for role, width in sizes.items()}
    whole = torch.cat([parts[role] for role in order], -1)
    for role, part in parts.items():
        layout = layouts.blocked(role, 4, 2, 8, order)
        assert torch.equal(layout.split(whole).flatten(-2), part)
        changed = layout.merge(whole, layout.split(whole) + 1)
        assert torch.equal(layout.split(changed).flatten(-2), part + 1)
    assert FusedQKV("c_attn", "blocked").order == "qkv"

"""Models whose layers are not one list that every pass runs once, against plain PyTorch hooks."""

from typing import Any

import pytest
import torch
from described import tiny
from raw import record
from torch import Tensor

from lensbridge.errors import HookNeverFiredError, InputError
from lensbridge.model import LensModel

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[9, 23, 41, 17, 60, 33, 12], [14, 52, 31, 77, 25, 48, 66]])


# --- Llama 3.2 Vision: layers that only run with an image ----------------------------------------


@pytest.fixture(scope="module")
def mllama() -> LensModel:
    return tiny("mllama", num_hidden_layers=4, cross_attention_layers=[1, 3])


def image(model: Any, places: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, places, model.config.hidden_size, generator=generator).double()


def test_cross_attention_layers_hold_what_the_bare_model_computes(mllama: LensModel) -> None:
    bare: Any = mllama.hf_model
    given = {"input_ids": IDS, "cross_attention_states": image(bare)}
    with torch.no_grad():
        raw = record(bare, **given)
    logits, cache = mllama.run_with_cache(given)
    layer = bare.model.layers[1]
    assert torch.equal(logits, raw.logits)
    assert torch.equal(cache["blocks.1.hook_resid_pre"], raw.inputs[layer])
    assert torch.equal(
        cache["blocks.1.hook_cross_attn_out"],
        layer.cross_attn_attn_gate.tanh() * raw.outputs[layer.cross_attn],
    )
    assert torch.equal(
        cache["blocks.1.hook_mlp_out"], layer.cross_attn_mlp_gate.tanh() * raw.outputs[layer.mlp]
    )
    q = raw.outputs[layer.cross_attn.q_norm]
    assert torch.equal(cache["blocks.1.cross_attn.hook_q"], q.transpose(1, 2))
    z = raw.inputs[layer.cross_attn.o_proj]
    assert torch.equal(cache["blocks.1.cross_attn.hook_z"].flatten(2), z)
    assert cache["blocks.1.cross_attn.hook_pattern"].shape == (2, 4, 7, 5)


def test_terms_of_the_stream_are_gated_as_the_model_gates_them(mllama: LensModel) -> None:
    given = {"input_ids": IDS, "cross_attention_states": image(mllama.hf_model)}
    _, cache = mllama.run_with_cache(given)
    terms, labels = cache.decompose_resid(-1, return_labels=True)
    assert "3_cross_attn_out" in labels
    torch.testing.assert_close(terms.sum(0), cache["blocks.3.hook_resid_post"])


def test_a_text_without_an_image_skips_layers(mllama: LensModel) -> None:
    with torch.no_grad():
        logits = mllama.hf_model(IDS).logits
    found, cache = mllama.run_with_cache(IDS)
    assert torch.equal(found, logits)
    assert not [name for name in cache if name.startswith(("blocks.1.", "blocks.3."))]
    stream = cache["blocks.2.hook_resid_pre"]
    assert torch.equal(stream, cache["blocks.0.hook_resid_post"])
    assert torch.equal(mllama(stream, start_at_layer=2), logits)
    with pytest.raises(HookNeverFiredError, match=r"blocks\.1"):
        mllama.run_with_cache(IDS, names_filter="blocks.1.hook_resid_pre")
    with pytest.raises(InputError, match="skips this layer"):
        mllama(stream, start_at_layer=1)
    with pytest.raises(InputError, match="skips this layer"):
        mllama(IDS, stop_at_layer=3)


# --- layers that share one module ----------------------------------------------------------------


def test_spans_begin_and_end_in_the_call_that_is_the_layer() -> None:
    model = tiny("albert", num_hidden_layers=3)
    logits, cache = model.run_with_cache(IDS)
    for layer in (1, 2):
        stopped, _ = model.run_with_cache(IDS, stop_at_layer=layer)
        assert torch.equal(stopped, cache[f"blocks.{layer}.hook_resid_pre"])
    last = cache["blocks.2.hook_resid_post"]
    assert torch.equal(model.run_with_cache(IDS, stop_at_layer=3)[0], last)
    assert torch.equal(model(cache["blocks.0.hook_resid_pre"], start_at_layer=0), logits)
    assert torch.equal(model(last, start_at_layer=3), logits)

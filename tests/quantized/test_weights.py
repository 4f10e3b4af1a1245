"""Weights of quantized models: those of the library's own dequantizer, and they take no writes."""

from typing import Any

import pytest
import torch
from quantized.libraries import LIBRARIES, Library
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lensbridge
from lensbridge.errors import ProcessingError, WeightError

pytestmark = [pytest.mark.quantized, pytest.mark.filterwarnings("ignore")]

IDS = torch.tensor([[3, 9, 27, 18]])
each_library = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
EXACT = {name: one for name, one in LIBRARIES.items() if one.exact}
RUNNING = {name: one for name, one in LIBRARIES.items() if one.runs}


def quantized(library: Library) -> tuple[Any, Any]:
    """A llama with quantized attention and MLP in its first layer, and the same behind the lens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
        attention_bias=True,
    )
    hf = LlamaForCausalLM(config).eval()
    for name, parameter in hf.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)
    layer = hf.model.layers[0]
    for holder in (layer.self_attn, layer.mlp):
        for name, linear in list(holder.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(holder, name, library.quantize(linear))
    return hf, lensbridge.load(hf, derive=False)  # whatever forward a library puts there


PARTS = {
    "attn.W_Q": ("self_attn", "q_proj", lambda w: w.unflatten(-1, (4, 16)).permute(1, 0, 2)),
    "attn.W_K": ("self_attn", "k_proj", lambda w: w.unflatten(-1, (2, 16)).permute(1, 0, 2)),
    "attn.W_V": ("self_attn", "v_proj", lambda w: w.unflatten(-1, (2, 16)).permute(1, 0, 2)),
    "attn.W_O": ("self_attn", "o_proj", lambda w: w.unflatten(0, (4, 16))),
    "mlp.W_in": ("mlp", "up_proj", lambda w: w),
    "mlp.W_gate": ("mlp", "gate_proj", lambda w: w),
    "mlp.W_out": ("mlp", "down_proj", lambda w: w),
}


@each_library
def test_weights_are_those_of_the_librarys_dequantizer(library: Library) -> None:
    hf, model = quantized(library)
    for name, (holder, child, shaped) in PARTS.items():
        layer = getattr(getattr(hf.model.layers[0], holder), child)
        wanted = shaped(library.dequantize(layer).detach().mT)
        found = model.weight(f"blocks.0.{name}")
        torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-7, msg=name)
        assert model.weight_state(f"blocks.0.{name}") == "quantized"
        assert model.weight_state(f"blocks.1.{name}") == "plain"
        row = model.describe_weights()[f"blocks.0.{name}"]
        assert row.shape == tuple(wanted.shape)
        assert library.says in row.readable
        assert library.says in row.why_not_writable
    assert torch.equal(model.W_Q[0].detach(), model.weight("blocks.0.attn.W_Q").detach())


@pytest.mark.parametrize("library", EXACT.values(), ids=EXACT)
def test_the_layer_computes_with_what_is_read(library: Library) -> None:
    hf, model = quantized(library)
    layer = hf.model.layers[0].mlp.up_proj
    rows = torch.randn(5, 64)
    with torch.no_grad():
        found = rows @ model.blocks[0].mlp.W_in.float()
        wanted = layer(rows) - layer(torch.zeros(1, 64))
    torch.testing.assert_close(found, wanted.float(), rtol=2e-3, atol=2e-3)


@each_library
def test_biases_are_read_and_nothing_is_written(library: Library) -> None:
    hf, model = quantized(library)
    bias = hf.model.layers[0].self_attn.q_proj.bias
    assert torch.equal(model.b_Q[0].detach().flatten(), bias.detach().flatten())
    held = hf.model.layers[0].state_dict().items()
    before = {name: str(value.data) for name, value in held if isinstance(value, Tensor)}

    def writes() -> list[Any]:
        attention = model.blocks[0].attn
        return [attention.W_Q.zero_, attention.b_Q.zero_, model.blocks[0].mlp.W_out[3].zero_]

    for at in range(3):
        with torch.no_grad(), pytest.raises(WeightError, match="quantized"):
            writes()[at]()
    refused = r"blocks\.0\.mlp\.W_out cannot be edited.*quantized"
    with pytest.raises(WeightError, match=refused), model.edited({"blocks.0.mlp.W_out": 0.0}):
        pass
    with pytest.raises(WeightError, match="is a copy"):
        model.W_in[0] = 0.0
    with pytest.raises(ProcessingError, match=f"quantized.*{library.says}"):
        model.process_weights_(fold_ln=True)
    after = hf.model.layers[0].state_dict()
    assert all(str(after[name].data) == value for name, value in before.items())


@pytest.mark.parametrize("library", RUNNING.values(), ids=RUNNING)
def test_activations_are_those_of_the_bare_model(library: Library) -> None:
    hf, model = quantized(library)
    seen: list[Tensor] = []
    layer = hf.model.layers[0].mlp.up_proj
    with torch.no_grad():
        _ = model.W_in[0]  # read before and after
        with_hook = layer.register_forward_hook(lambda module, args, out: seen.append(out))
        wanted = hf(IDS).logits
        with_hook.remove()
        logits, cache = model.run_with_cache(IDS, names_filter=["pre_linear", "resid_post"])
    assert torch.equal(logits, wanted)
    assert torch.equal(cache["pre_linear", 0].flatten(), seen[0].flatten())


@pytest.mark.parametrize("table", ["Embedding4bit", "Embedding8bit"])
def test_quantized_tables(table: str) -> None:
    import bitsandbytes

    hf = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
            vocab_size=128,
        )
    ).eval()  # fmt: skip
    embedding = getattr(bitsandbytes.nn, table)(128, 64)
    embedding.load_state_dict(hf.model.embed_tokens.state_dict())
    hf.model.embed_tokens = embedding.to("cpu")
    model = lensbridge.load(hf)
    with torch.no_grad():
        wanted = hf.model.embed_tokens(torch.arange(128))
        torch.testing.assert_close(model.W_E, wanted.to(model.W_E.dtype))
        assert model.weight_state("embed.W_E") == "quantized"
        with pytest.raises(WeightError, match="bitsandbytes"):
            model.W_E[3] = 0.0


def test_a_quantized_layer_under_an_adapter_is_read_with_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peft import LoraConfig, get_peft_model

    for part in ("awq", "gptq"):  # peft asks for a GPTQModel that needs another torch
        monkeypatch.setattr(f"peft.tuners.lora.{part}.is_gptqmodel_available", lambda: False)
    hf, _ = quantized(LIBRARIES["bitsandbytes nf4"])
    peft = get_peft_model(hf, LoraConfig(target_modules=["q_proj"], r=2)).eval()
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model = lensbridge.load(peft)
    layer = hf.model.layers[0].self_attn.q_proj
    base = LIBRARIES["bitsandbytes nf4"].dequantize(layer.base_layer)
    whole = base + layer.get_delta_weight("default")
    assert model.weight_state("blocks.0.attn.W_Q") == "adapted"
    found = model.W_Q[0].detach().permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(found, whole.detach().mT, rtol=1e-2, atol=1e-3)  # in bfloat16

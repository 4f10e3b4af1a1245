"""Processed weights are what their definitions say, in float64 and by hand."""

from typing import Any

import pytest
import torch
from described import gpt2, log_probs, tiny
from tiny_models import Layer, Shape, build, final_norm_of, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.inputs.random import inputs_for


def folded(weight: Tensor, bias: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`[in, out]` and `[out]` behind a LayerNorm, from the definition."""
    diagonal = torch.diag(norm.weight.detach())
    into = torch.eye(len(weight), dtype=weight.dtype) - 1 / len(weight)
    return into @ diagonal @ weight, bias + norm.bias.detach() @ weight


def test_folding_a_layer_norm_is_its_definition() -> None:
    hf_model, model = gpt2()
    layer = Layer(hf_model, "gpt2", 1)
    wanted_qkv = folded(layer.qkv["q"].weight.detach(), layer.qkv["q"].bias.detach(), layer.ln1)
    wanted_up = folded(layer.up.weight.detach(), layer.up.bias.detach(), layer.ln2)
    final = final_norm_of(hf_model, "gpt2")
    head = hf_model.lm_head.weight.detach().T
    wanted_head = folded(head, torch.zeros(head.shape[1], dtype=head.dtype), final)
    with model.processed(fold_ln=True, center_writing_weights=False, center_unembed=False,
                         fold_value_biases=False):  # fmt: skip
        torch.testing.assert_close(layer.qkv["q"].weight.detach(), wanted_qkv[0])
        torch.testing.assert_close(layer.qkv["q"].bias.detach(), wanted_qkv[1])
        torch.testing.assert_close(layer.up.weight.detach(), wanted_up[0])
        torch.testing.assert_close(layer.up.bias.detach(), wanted_up[1])
        torch.testing.assert_close(model.W_U.detach(), wanted_head[0])
        torch.testing.assert_close(model.b_U.detach(), wanted_head[1])
        assert model.processing.steps == ("fold_ln",)


def test_folding_an_rms_norm_is_its_definition() -> None:
    shape = Shape("llama", dtype=torch.float64)
    hf_model = build(shape)
    model, layer = lensbridge.load(hf_model), Layer(hf_model, "llama", 0)
    wanted = {
        one: one.weight.detach() @ torch.diag(norm.weight.detach())
        for norm, readers in (
            (layer.ln1, layer.qkv.values()),
            (layer.ln2, (layer.gate, layer.up)),
            (final_norm_of(hf_model, "llama"), (hf_model.lm_head,)),
        )
        for one in readers
    }
    biases = {one: one.bias for one in wanted}
    with model.processed(fold_ln=True, center_unembed=False, fold_value_biases=False):
        for one, weight in wanted.items():
            torch.testing.assert_close(one.weight.detach(), weight)
            assert one.bias is biases[one]


def test_tied_embeddings_are_untied_inside_and_tied_behind() -> None:
    hf_model, model = gpt2()
    embedding = hf_model.transformer.wte.weight
    assert hf_model.lm_head.weight is embedding
    rows = embedding.detach().clone()
    with model.processed(fold_ln=True, center_writing_weights=False):
        assert hf_model.lm_head.weight is not embedding
        assert torch.equal(embedding, rows)
    assert hf_model.lm_head.weight is embedding
    with model.processed(fold_ln=False, center_writing_weights=True, center_unembed=False):
        assert torch.equal(hf_model.lm_head.weight, rows)
        torch.testing.assert_close(model.W_E.detach(), rows - rows.mean(1, keepdim=True))
    assert hf_model.lm_head.weight is embedding


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "codegen", "starcoder2"])
def test_a_centred_stream_has_mean_zero_everywhere(name: str) -> None:
    model = tiny(name)
    seen: list[Tensor] = []
    readers = [block.module for block in model.native.blocks] + [model.native.ln_final.module]
    with model.processed(center_writing_weights=True):
        for one in readers:
            one.register_forward_pre_hook(keep_input(seen), with_kwargs=True)
        log_probs(model.hf_model, inputs_for(model.hf_model))
    assert len(seen) == 3
    for stream in seen:
        assert stream.mean(-1).abs().max() < 1e-12 * stream.abs().max()


def keep_input(seen: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    return hook


def test_a_centred_unembedding_has_mean_zero_and_keeps_log_probabilities() -> None:
    hf_model, model = gpt2()
    inputs = {"input_ids": tokens()}
    with torch.no_grad():
        logits = hf_model(**inputs).logits
        with model.processed(False, False, True, False):
            moved = hf_model(**inputs).logits
            assert model.W_U.mean(1).abs().max() < 1e-14
    torch.testing.assert_close(moved, logits - logits.mean(-1, keepdim=True))


def test_a_value_bias_of_a_shared_head_goes_through_every_head_that_reads_it() -> None:
    shape = Shape("qwen2", heads=6, kv_heads=2, dtype=torch.float64)
    hf_model = build(shape)
    model, layer = lensbridge.load(hf_model), Layer(hf_model, "qwen2", 0)
    assert layer.o.bias is None
    bias, out = layer.qkv["v"].bias.detach().clone(), layer.o.weight.detach()
    wanted = sum(
        out[:, h * 6 : h * 6 + 6] @ bias[(h // 3) * 6 : (h // 3) * 6 + 6] for h in range(6)
    )
    with model.processed(False, False, False, True):
        torch.testing.assert_close(layer.o.bias.detach(), wanted)
        assert not layer.qkv["v"].bias.any()
    assert layer.o.bias is None
    assert torch.equal(layer.qkv["v"].bias, bias)


def test_refactored_matrices_have_the_same_products_and_orthogonal_columns() -> None:
    _, model = gpt2()

    def products() -> list[Tensor]:
        ones = [torch.cat([model.W_Q[1], model.b_Q[1].unsqueeze(1)], 1),
                torch.cat([model.W_K[1], model.b_K[1].unsqueeze(1)], 1)]  # fmt: skip
        return [(ones[0] @ ones[1].mT).detach(), (model.W_V[1] @ model.W_O[1]).detach()]

    wanted = products()
    with model.processed(False, False, False, False, refactor_factored_attn_matrices=True):
        for found, product in zip(products(), wanted, strict=True):
            torch.testing.assert_close(found, product)
        gram = model.W_O[1] @ model.W_O[1].mT
        torch.testing.assert_close(gram.detach(), torch.eye(6).double().expand(4, 6, 6))
        q = torch.cat([model.W_Q[1], model.b_Q[1].unsqueeze(1)], 1)
        k = torch.cat([model.W_K[1], model.b_K[1].unsqueeze(1)], 1)
        torch.testing.assert_close((q.mT @ q).detach(), (k.mT @ k).detach())
        assert not model.b_V[1].any()

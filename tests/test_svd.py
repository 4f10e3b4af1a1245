"""Singular vectors against numpy's of matrices written out by hand, and tokens against the head."""

from typing import Any

import numpy as np
import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from tiny_models import FAMILIES, Layer, Shape, build
from torch import Tensor, nn
from torch.testing import assert_close

import lensbridge
from lensbridge.analysis import SVDInterpreter, composition_scores, singular_readout
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import InputError, ShapeError, WeightError
from lensbridge.tensors.factored import FactoredMatrix


def tiny(name: str, **fields: Any) -> nn.Module:
    """A tiny model of a built-in description, in float64."""
    found = next(one for one in lensbridge_architectures() if one.name == name)
    return tiny_model(found, dtype=torch.float64, **fields)


def of_rows(matrix: Tensor, hf: nn.Module, n: int) -> Tensor:
    """Unembedded right singular vectors, by numpy. Shapes: `[d_vocab, n]`."""
    right = torch.from_numpy(np.linalg.svd(matrix.detach().numpy())[2][:n])
    return hf.get_output_embeddings().weight.detach() @ right.mT


def assert_same_up_to_sign(found: Tensor, expected: Tensor) -> None:
    assert found.shape == (expected.shape[0], 1, expected.shape[1])
    signs = torch.sign((found[:, 0] * expected).sum(0))
    assert_close(found[:, 0] * signs, expected)


def linear(module: nn.Module) -> Tensor:
    """`[in, out]` of a Linear, or of GPT-2's Conv1D."""
    return module.weight.mT if isinstance(module, nn.Linear) else module.weight


@pytest.mark.parametrize("family", FAMILIES)
def test_singular_vectors_are_those_of_the_native_weights(family: str) -> None:
    shape = Shape(family, dtype=torch.float64)
    hf = build(shape)
    reader = SVDInterpreter(lensbridge.load(hf))
    layer = Layer(hf, family, 1)
    fed = linear(layer.up).mT * layer.ln2.weight
    found = reader.get_singular_vectors("w_in", 1, num_vectors=5)
    assert_same_up_to_sign(found, of_rows(fed, hf, 5))
    found = reader.get_singular_vectors("w_out", 1, 4)
    assert_same_up_to_sign(found, of_rows(linear(layer.down), hf, 4))
    if layer.gate is not None:
        fed = linear(layer.gate).mT * layer.ln2.weight
        found = reader.get_singular_vectors("w_gate", 1, 3)
        assert_same_up_to_sign(found, of_rows(fed, hf, 3))
    assert not found.requires_grad


@pytest.mark.parametrize("head", [0, 3])
def test_heads_share_values_where_they_do(head: int) -> None:
    shape = Shape("llama", dtype=torch.float64)
    hf = build(shape)
    attn = hf.model.layers[1].self_attn
    value = attn.v_proj.weight[head // 2 * 6 :][:6].mT
    product = value @ attn.o_proj.weight[:, head * 6 :][:, :6].mT
    reader = SVDInterpreter(lensbridge.load(hf))
    found = reader.get_singular_vectors("OV", 1, num_vectors=6, head_index=head)
    assert_same_up_to_sign(found, of_rows(product, hf, 6))
    U, S, V = reader.decompose("OV", 1, head)
    assert_close((U * S) @ V.mT, product.detach())


def test_each_expert_has_its_own() -> None:
    hf = tiny("qwen3_moe")
    reader = SVDInterpreter(lensbridge.load(hf))
    layer = hf.model.layers[1]
    gain, both = layer.post_attention_layernorm.weight, layer.mlp.experts.gate_up_proj[2]
    half = both.shape[0] // 2
    for kind, rows in (("w_gate", both[:half]), ("w_in", both[half:])):
        found = reader.get_singular_vectors(kind, 1, 3, expert_index=2)
        assert_same_up_to_sign(found, of_rows(rows * gain, hf, 3))
    found = reader.get_singular_vectors("w_out", 1, 3, expert_index=2)
    assert_same_up_to_sign(found, of_rows(layer.mlp.experts.down_proj[2].mT, hf, 3))
    with pytest.raises(InputError, match="one of the 4 experts"):
        reader.get_singular_vectors("w_in", 1)


def test_the_mlp_beside_the_experts() -> None:
    hf = tiny("qwen2_moe")
    shared = hf.model.layers[1].mlp.shared_expert
    reader = SVDInterpreter(lensbridge.load(hf))
    found = reader.get_singular_vectors("w_out", 1, 3, expert_index="shared")
    assert_same_up_to_sign(found, of_rows(shared.down_proj.weight.mT, hf, 3))


def test_a_parallel_mlp_reads_through_the_norm_that_it_shares() -> None:
    hf = tiny("gptj")
    block = hf.transformer.h[1]
    found = SVDInterpreter(lensbridge.load(hf)).get_singular_vectors("w_in", 1, 3)
    assert_same_up_to_sign(found, of_rows(block.mlp.fc_in.weight * block.ln_1.weight, hf, 3))


def test_a_post_norm_mlp_reads_the_stream_as_it_is() -> None:
    hf = tiny("bert")
    up = hf.bert.encoder.layer[1].intermediate.dense.weight
    found = SVDInterpreter(lensbridge.load(hf)).get_singular_vectors("w_in", 1, 3)
    assert_same_up_to_sign(found, of_rows(up, hf, 3))


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (("OV", 0), "not None"),
        (("OV", 0, 2, 4), "one of the 4 heads"),
        (("OV", 2, 2, 0), "layer_index is 0 to 1"),
        (("w_mid", 0), "not 'w_mid'"),
        (("OV", 0, 7, 0), "at most 6"),
        (("w_in", 0, 2, None, 0), "not a mixture"),
    ],
)
def test_what_there_is_not(ask: tuple[Any, ...], why: str) -> None:
    reader = SVDInterpreter(lensbridge.load(build(Shape("llama"))))
    with pytest.raises(InputError, match=why):
        reader.get_singular_vectors(*ask)


def test_weights_that_there_are_not() -> None:
    with pytest.raises(WeightError, match="not gated"):
        SVDInterpreter(lensbridge.load(build(Shape("gpt2")))).get_singular_vectors("w_gate", 0)
    with pytest.raises(WeightError, match="no attention"):
        SVDInterpreter(lensbridge.load(tiny("mamba"))).get_singular_vectors("OV", 0, 2, 0)
    with pytest.raises(WeightError, match="W_U reads 24 numbers"):
        SVDInterpreter(lensbridge.load(tiny("albert"))).get_singular_vectors("w_out", 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_readout_ranks_tokens_as_the_native_head_does(family: str) -> None:
    hf = build(Shape(family, dtype=torch.float64))
    model = lensbridge.load(hf)
    norm = hf.model.norm if family == "llama" else hf.transformer.ln_f
    directions = singular_readout(model, "OV", 1, head_index=2, num_vectors=4, k=5)
    values = np.linalg.svd(model.OV[1, 2].AB.detach().numpy())[1]
    for i, one in enumerate(directions):
        assert one.value == pytest.approx(values[i])
        assert one.share == pytest.approx(values[i] ** 2 / (values**2).sum())
        assert_close(one.direction.norm(), torch.tensor(1.0, dtype=torch.float64))
        with torch.no_grad():  # the head of a long vector, less what it gives of none
            given = norm(one.direction * 1e3) - norm(one.direction * 0)
            logits = hf.lm_head(given)
        assert [int(t) for t, _ in one.top] == logits.topk(5).indices.tolist()
        assert [int(t) for t, _ in one.bottom] == (-logits).topk(5).indices.tolist()
        ratio = torch.tensor([v for _, v in one.top], dtype=torch.float64) / logits.topk(5).values
        assert_close(ratio, ratio[0].expand(5), rtol=1e-4, atol=0)
        assert one.top[0][1] > 0
        assert one.top[0][1] >= -one.bottom[0][1]


def test_a_readout_has_the_texts_of_tokens() -> None:
    model = lensbridge.load("demo")
    best = singular_readout(model, "OV", 2, head_index=1, num_vectors=1, k=3)[0]
    reader = SVDInterpreter(model)
    direction = reader.decompose("OV", 2, 1).V[:, 0]
    assert_close(best.direction.abs(), direction.abs())
    texts = [text for text, _ in best.top]
    assert all(model.to_single_token(text) >= 0 for text in texts)
    assert str(best).splitlines()[1] == "  + " + ", ".join(map(repr, texts))


def test_a_head_that_is_no_matrix_has_no_readout() -> None:
    with pytest.raises(WeightError, match="another layer before W_U"):
        singular_readout(lensbridge.load(tiny("bert")), "w_out", 0)


# --- composition scores of any matrices ----------------------------------------------------------


def test_composition_scores_of_pairs_and_of_all_pairs() -> None:
    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    left = FactoredMatrix(rand(2, 3, 9, 4), rand(2, 3, 4, 7))
    right = FactoredMatrix(rand(5, 7, 10), rand(5, 10, 6))
    found = composition_scores(left, right)
    assert found.shape == (2, 3, 5)
    for i in range(2):
        for j in range(3):
            for k in range(5):
                a, b = left[i, j].AB, right[k].AB
                assert_close(found[i, j, k], (a @ b).norm() / (a.norm() * b.norm()))
    pairs = composition_scores(left[:, :1], right[:3], broadcast_dims=False)
    expected = torch.stack([torch.stack([found[i, 0, k] for k in range(3)]) for i in range(2)])
    assert_close(pairs, expected)
    with pytest.raises(ShapeError, match=r"writes 7 .* reads 9"):
        composition_scores(left, left)

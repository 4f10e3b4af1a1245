"""Writing to stacks of weights in place: the native parameters change, or a WeightError says why.

The oracle is the bare model, whose parameters are changed by their module paths.
"""

import copy
import io
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import Shape, build, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import WeightError
from lensbridge.tensors.weight_copy import WeightCopy

GPT2, LLAMA = Shape("gpt2"), Shape("llama")  # llama's key/value heads are shared

MODES = {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def _output_weights(hf: nn.Module, family: str) -> list[nn.Parameter]:
    """The output projections of attention, by their paths."""
    if family == "gpt2":
        return [block.attn.c_proj.weight for block in hf.transformer.h]
    return [layer.self_attn.o_proj.weight for layer in hf.model.layers]


def _by_head(parameter: Tensor, family: str, n_heads: int) -> Tensor:
    return (parameter if family == "gpt2" else parameter.mT).unflatten(0, (n_heads, -1))


WHOLE = {
    "mul_": lambda w: w.mul_(0.5),
    "zero_": lambda w: w.zero_(),
    "copy_": lambda w: w.copy_(torch.arange(w.numel()).view(w.shape).float()),
    "iadd": lambda w: w.__iadd__(1),
    "fill_": lambda w: w.fill_(3.0),
    "clamp_": lambda w: w.clamp_(-0.01, 0.01),
    "masked_fill_": lambda w: w.masked_fill_(torch.ones(w.shape[-1]).bool(), 2.0),
    "index_fill_": lambda w: w.index_fill_(1, torch.tensor([1]), 0.0),
    "init.zeros_": lambda w: nn.init.zeros_(w),
    "init.constant_": lambda w: nn.init.constant_(w, 2.0),
    "init.uniform_": lambda w: nn.init.uniform_(w, generator=torch.Generator().manual_seed(1)),
    "out": lambda w: torch.add(torch.ones(w.shape), 1, out=w),
    "out of itself": lambda w: torch.mul(w, 2, out=w),
    "relu inplace": lambda w: F.relu(w, inplace=True),
    "foreach": lambda w: torch._foreach_mul_([w], 2.0),
    "of itself": lambda w: w.add_(w * 2),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=lambda shape: shape.family)
@pytest.mark.parametrize("op", WHOLE)
def test_in_place_on_a_whole_stack_writes_to_the_parameters(
    op: str, shape: Shape, mode: str
) -> None:
    hf = build(shape)
    expected = copy.deepcopy(hf)
    model = lensbridge.load(hf)
    with torch.no_grad():
        native = _output_weights(expected, shape.family)
        by_hand = torch.stack([_by_head(w, shape.family, 4) for w in native])
        WHOLE[op](by_hand)
        for parameter, value in zip(native, by_hand, strict=True):
            _by_head(parameter, shape.family, 4).copy_(value)
    with MODES[mode]():
        WHOLE[op](model.W_O)
    for (name, mine), theirs in zip(hf.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    with torch.no_grad():
        assert torch.equal(hf(tokens()).logits, expected(tokens()).logits)


PARTS = {
    "slice": lambda w: w[:, 1].zero_(),
    "layers": lambda w: w[0:2].add_(1),
    "ellipsis": lambda w: w[..., 0].mul_(0),
    "new axis": lambda w: w[None].zero_(),
    "data": lambda w: w.data.zero_(),
    "detach": lambda w: w.detach().zero_(),
    "mT": lambda w: w.mT.zero_(),
    "view": lambda w: w.view(-1).zero_(),
    "flatten": lambda w: w.flatten(0, 1)[3].zero_(),
    "unbind": lambda w: w.unbind()[0].zero_(),
    "split": lambda w: w.split(1)[1].zero_(),
    "to": lambda w: w.to("cpu").zero_(),
    "setitem of a view": lambda w: w[:, 1].__setitem__(0, 1.0),
    "out is a view": lambda w: torch.add(torch.ones(w[:, 1].shape), 1, out=w[:, 1]),
    "relu of a view": lambda w: F.relu(w[:, 1], inplace=True),
    "init of a view": lambda w: nn.init.zeros_(w[:, 1]),
    "view of a view": lambda w: w[:, 1].mT[0].mul_(0),
    "data of a view": lambda w: w[:, 1].data.mul_(0),
    "setting data": lambda w: setattr(w, "data", torch.zeros(w.shape)),
    "setting data of a view": lambda w: setattr(w[:, 1], "data", torch.zeros(1)),
    "reshaping in place": lambda w: w.transpose_(0, 1),
    "resizing": lambda w: w.resize_(3),
    "several layers at once": lambda w: w.__setitem__(slice(0, 2), 0.0),
    "requires_grad_": lambda w: w.requires_grad_(False),
    "setting requires_grad": lambda w: setattr(w, "requires_grad", False),
    "grad": lambda w: w.grad,
    "computed layers": lambda w: w.each(lambda layer: layer * 2).mul_(0),
    "a computed layer": lambda w: w.each(lambda layer: layer * 2)[0].mul_(0),
    "computed layers, one by one": lambda w: [x.zero_() for x in w.each(lambda layer: layer * 2)],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", PARTS)
def test_what_cannot_reach_the_parameters_raises(op: str, mode: str) -> None:
    hf = build(GPT2)
    model, before = lensbridge.load(hf), copy.deepcopy(hf.state_dict())
    with MODES[mode](), pytest.raises(WeightError, match=r"hf_model|stack\[layer"):
        PARTS[op](model.W_O)
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())


def test_an_augmented_assignment_to_several_layers_raises() -> None:
    hf = build(GPT2)
    model = lensbridge.load(hf)
    before = copy.deepcopy(hf.state_dict())
    with pytest.raises(WeightError, match="for layer in model"):
        model.W_O[0:2] += 1
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())


COMPUTED = {
    "expanded keys": lambda model: model.W_K_expanded.mul_(0),
    "a layer of expanded keys": lambda model: model.W_K_expanded[0].mul_(0),
    "a block's expanded values": lambda model: model.blocks[0].attn.W_V_expanded.mul_(0),
    "keys of QK": lambda model: model.QK.B.mul_(0),
    "values of OV": lambda model: model.OV.A.mul_(0),
    "values of one head's OV": lambda model: model.OV[0, 1].A.mul_(0),
    "a slice of QK": lambda model: model.QK[:, 0].A.mul_(0),
    "QK transposed": lambda model: model.QK.T.A.mul_(0),
    "missing biases": lambda model: model.b_Q.add_(1),
    "a missing bias": lambda model: model.b_Q[0].add_(1),
    "a block's missing bias": lambda model: model.blocks[0].mlp.b_out.add_(1),
    "a bias by name": lambda model: model.weight("blocks.0.attn.b_O").add_(1),
    "a missing bias of the head": lambda model: model.b_U.add_(1),
    "a norm's missing bias": lambda model: model.blocks[0].ln1.b.add_(1),
}


@pytest.mark.parametrize("op", COMPUTED)
def test_weights_that_are_computed_refuse_writes(op: str) -> None:
    hf = build(Shape("mistral"))
    model, before = lensbridge.load(hf), copy.deepcopy(hf.state_dict())
    with torch.no_grad(), pytest.raises(WeightError, match="hf_model"):
        COMPUTED[op](model)
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())


def test_stacks_of_views_and_factors_write_through() -> None:
    hf = build(GPT2)
    model = lensbridge.load(hf)
    with torch.no_grad():
        model.W_O.each(lambda layer: layer.mT).mul_(0)
        assert not any(w.any() for w in _output_weights(hf, "gpt2"))
        model.OV.A.mul_(0)
        model.QK[1, 2].B.mul_(0)
        model.W_O[np.int64(1)].add_(1)
        model.W_O[torch.tensor(0), 3].add_(2)
    first, second = (block.attn for block in hf.transformer.h)
    for attn in (first, second):
        assert not attn.c_attn.weight[:, 2 * GPT2.d_model :].any()
    d = GPT2.d_head
    keys = second.c_attn.weight[:, GPT2.d_model : 2 * GPT2.d_model].unflatten(1, (4, d))
    assert not keys[:, 2].any()
    assert keys[:, 1].all()
    assert torch.equal(second.c_proj.weight, torch.ones_like(second.c_proj.weight))
    assert torch.equal(first.c_proj.weight[3 * d :], torch.full((d, GPT2.d_model), 2.0))
    assert not first.c_proj.weight[: 3 * d].any()


def test_two_layers_that_are_one_parameter_take_one_value() -> None:
    hf = build(GPT2)
    hf.transformer.h[1].attn.c_proj.weight = hf.transformer.h[0].attn.c_proj.weight
    model, weight = lensbridge.load(hf), hf.transformer.h[0].attn.c_proj.weight
    expected = weight.detach() * 3
    model.W_O.mul_(3)
    assert torch.equal(weight, expected)
    two = torch.stack([torch.zeros(model.W_O.shape[1:]), torch.ones(model.W_O.shape[1:])])
    with pytest.raises(WeightError, match="one parameter"):
        model.W_O.copy_(two)
    assert torch.equal(weight, expected)


def test_copies_compute_like_tensors() -> None:
    hf = build(GPT2)
    model = lensbridge.load(hf)
    part = model.W_O[:, 1]
    by_hand = torch.stack([_by_head(w, "gpt2", 4)[1] for w in _output_weights(hf, "gpt2")])
    assert torch.equal(part, by_hand)
    for computed in (part.clone(), part * 2, part + part, part.sum(), copy.deepcopy(part)):
        assert type(computed) is Tensor
    cleared = part.clone().mul_(0)
    assert not cleared.any()
    (gradient,) = torch.autograd.grad((part**2).sum(), [hf.transformer.h[0].attn.c_proj.weight])
    (expected,) = torch.autograd.grad((by_hand**2).sum(), [hf.transformer.h[0].attn.c_proj.weight])
    assert torch.equal(gradient, expected)
    with pytest.raises(ValueError, match="read-only"):
        part.detach().numpy()[0] = 0.0
    file = io.BytesIO()
    torch.save({"part": part.detach(), "stack": model.W_O}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    assert torch.equal(kept["part"], by_hand)
    assert torch.equal(kept["stack"], model.W_O.full())


def test_a_stack_says_that_it_is_no_leaf() -> None:
    model = lensbridge.load(build(GPT2))
    assert model.W_O.requires_grad
    with pytest.raises(ValueError, match="non-leaf"):
        torch.optim.SGD([model.W_O], lr=1.0)
    model.hf_model.requires_grad_(False)
    assert not model.W_O.requires_grad


def test_a_copy_is_compared_with_a_parameter() -> None:
    zeros = WeightCopy.of(torch.zeros(3))
    torch.testing.assert_close(zeros, torch.nn.Parameter(torch.zeros(3)))
    torch.testing.assert_close(torch.nn.Parameter(torch.zeros(3)), zeros)
    parameter = torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        parameter.mul_(2)  # which is no copy
    assert type(parameter * zeros) is Tensor

"""Hooks that cut the graph, against the same model with the value detached inside by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import Layer, Shape, build, final_norm_of, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.conformance.building import subject_of
from lensbridge.conformance.gradients import _leaves

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tokens()
FAMILIES = ("gpt2", "llama")


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The parameters' gradients of a number that depends on every logit."""
    logits = run()
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    named = dict(model.named_parameters())
    found = torch.autograd.grad((logits * weights).sum(), list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, found, strict=True) if g is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@contextmanager
def attention_with(cut: str) -> Iterator[None]:
    """The fused kernel written out, with scores or pattern cut from the graph."""
    native = F.scaled_dot_product_attention

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, *_: Any, **more: Any) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scale = more.get("scale") or q.shape[-1] ** -0.5
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        scores = (q @ k.mT * scale).masked_fill(~seen, -torch.inf)
        pattern = (scores.detach() if cut == "scores" else scores).softmax(-1)
        return (pattern.detach() if cut == "pattern" else pattern) @ v

    F.scaled_dot_product_attention = kernel
    try:
        yield
    finally:
        F.scaled_dot_product_attention = native


@contextmanager
def norm_with(module: nn.Module, cut: str) -> Iterator[None]:
    """A norm written out, with its divisor or its quotient cut from the graph."""

    def forward(x: Tensor) -> Tensor:
        layer_norm = isinstance(module, nn.LayerNorm)
        eps = module.eps if layer_norm else module.variance_epsilon
        centred = x - x.mean(-1, keepdim=True) if layer_norm else x
        scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        quotient = centred / (scale.detach() if cut == "scale" else scale)
        quotient = quotient.detach() if cut == "normalized" else quotient
        return quotient * module.weight + (module.bias if layer_norm else 0.0)

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


HOW: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "detached": lambda value, hook: value.detach(),
    "equal numbers": lambda value, hook: torch.as_tensor(value.detach().numpy().copy()),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("cut", ["scores", "pattern"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_without_a_graph(family: str, cut: str, how: str) -> None:
    model = build(Shape(family))
    lens = lensbridge.load(model)
    with attention_with(cut):
        wanted = gradients(model, lambda: model(IDS).logits)
    point = "attn_scores" if cut == "scores" else "pattern"
    hooks = [((point, layer), HOW[how]) for layer in range(lens.cfg.n_layers)]
    found = gradients(model, lambda: lens.run_with_hooks(IDS, hooks))
    assert_same(found, wanted)
    whole = gradients(model, lambda: model(IDS).logits)
    assert any(not torch.allclose(whole[name], wanted[name], atol=1e-4) for name in wanted)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("cut", ["scale", "normalized"])
@pytest.mark.parametrize("where", ["ln1", "ln2", "ln_final"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_without_a_graph(family: str, where: str, cut: str, how: str) -> None:
    model = build(Shape(family))
    lens = lensbridge.load(model)
    layer = Layer(model, family, 1)
    module = final_norm_of(model, family) if where == "ln_final" else vars(layer)[where]
    name = f"ln_final.hook_{cut}" if where == "ln_final" else f"blocks.1.{where}.hook_{cut}"
    with norm_with(module, cut):
        wanted = gradients(model, lambda: model(IDS).logits)
    found = gradients(model, lambda: lens.run_with_hooks(IDS, [(name, HOW[how])]))
    assert_same(found, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_results_without_a_graph(family: str) -> None:
    """All heads cut is attention's output cut, but for its bias."""
    model = build(Shape(family))
    lens = lensbridge.load(model)
    cut = HOW["detached"]
    found = gradients(model, lambda: lens.run_with_hooks(IDS, [(("result", 1), cut)]))
    wanted = gradients(model, lambda: lens.run_with_hooks(IDS, [(("z", 1), cut)]))
    weight = next(n for n in wanted if "1" in n and n.endswith(("c_proj.weight", "o_proj.weight")))
    found.pop(weight, None)
    wanted.pop(weight)
    assert_same(found, wanted)


def test_a_leaf_at_a_projection_that_is_clipped_in_place() -> None:
    """OLMo clips what the hook returned in place: the gradient still arrives at the hook's leaf."""
    from transformers import OlmoConfig, OlmoForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0}
    config = OlmoConfig(**sizes, **heads, clip_qkv=0.3, bos_token_id=1, eos_token_id=2)
    hf_model = OlmoForCausalLM(config).eval()
    projection = hf_model.model.layers[0].self_attn.v_proj
    leaves: list[Tensor] = []

    def leaf(value: Tensor, hook: Any) -> Tensor:
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    def raw(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()

    model = lensbridge.load(hf_model)
    ids = torch.randint(3, 64, (1, 6))
    logits = model.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_v", leaf)])
    (found,) = torch.autograd.grad(logits.square().sum(), leaves.pop())
    with projection.register_forward_hook(raw):
        (wanted,) = torch.autograd.grad(hf_model(ids).logits.square().sum(), leaves.pop())
    inside = wanted.abs() > 0  # beyond the bound the raw leaf has no gradient
    torch.testing.assert_close(found.flatten(2)[inside], wanted[inside])
    assert inside.sum() > 0


def test_whether_a_point_cuts_gradients_is_seen_at_the_parameters_near_it() -> None:
    model = build(Shape("llama", layers=4))
    subject = subject_of(model)
    start, near = _leaves(subject, "blocks.3.attn.hook_z")
    layers = model.model.layers
    assert start == 2
    assert set(near) == {*layers[2].parameters(), *layers[3].parameters()}
    assert len(_leaves(subject, "hook_embed")[1]) == len(list(model.parameters()))

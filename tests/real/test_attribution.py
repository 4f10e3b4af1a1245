"""Gradients and attribution patching against autograd on the bare model and real patches."""

from typing import Any

import pytest
import torch
from real.conftest import Pair
from real.trained import Trained
from torch import Tensor, nn

from lensbridge.cache import ActivationCache
from lensbridge.causal import AttributionResult, attribution_patch
from lensbridge.patching import Cell, get_act_patch_attn_head_out_all_pos, path_patch

everywhere = slice(None)
Places = dict[str, tuple[nn.Module, str]]


def autograd(trained: Trained, ids: Tensor, places: Places, of: Any) -> dict[str, Any]:
    """What the bare model computes at some places, and the gradients of a number there."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        kept[name] = value.clone()
        return kept[name]

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return (keep(name, args[0]), *args[1:]), kwargs

        return hook

    def after(name: str) -> Any:
        return lambda module, args, output: keep(name, output)

    handles = [
        module.register_forward_pre_hook(before(name), with_kwargs=True)
        if side == "input"
        else module.register_forward_hook(after(name))
        for name, (module, side) in places.items()
    ]
    try:
        value = of(trained.hf(ids).logits)
    finally:
        for handle in handles:
            handle.remove()
    grads = torch.autograd.grad(value, list(kept.values()))
    return {
        "values": {name: value.detach() for name, value in kept.items()},
        "gradients": dict(zip(kept, grads, strict=True)),
    }


def heads_and_mlps(trained: Trained) -> Places:
    return {
        f"blocks.{i}.{point}": trained.places(i)[point]
        for i in range(trained.lens.cfg.n_layers)
        for point in ("attn.hook_z", "hook_mlp_out")
    }


@pytest.fixture(scope="module")
def estimated(trained: Trained, pair: Pair) -> AttributionResult:
    found = attribution_patch(
        trained.lens, pair.clean, pair.corrupted, pair.mean_margin, units=["head", "mlp"]
    )
    assert isinstance(found, AttributionResult)
    return found


@pytest.fixture(scope="module")
def exact(trained: Trained, pair: Pair, clean_cache: ActivationCache) -> Tensor:
    """The effects of real patches of each head. Shapes: `[layer, head]`"""
    found = get_act_patch_attn_head_out_all_pos(
        trained.lens, pair.corrupted, clean_cache, pair.mean_margin, baseline=True
    )
    return found.effect().float()


def correlation(one: Tensor, other: Tensor) -> float:
    return float(
        torch.corrcoef(torch.stack([one.flatten().float(), other.flatten().float()]))[0, 1]
    )


def close(found: Tensor, terms: Tensor, trained: Trained) -> None:
    """Sums over the last axis of some terms, but for rounding in the model's dtype."""
    assert ((found - terms.sum(-1)).abs() <= 8 * trained.rounding * terms.abs().sum(-1)).all()


def test_gradients_are_those_of_autograd(trained: Trained, pair: Pair) -> None:
    places = heads_and_mlps(trained)
    wanted = autograd(trained, pair.corrupted, places, pair.mean_margin)["gradients"]
    value, found = trained.lens.gradients(pair.corrupted, list(places), pair.mean_margin)
    with torch.no_grad():
        assert torch.equal(value, pair.mean_margin(trained.hf(pair.corrupted).logits))
    for name, gradient in wanted.items():
        assert torch.equal(found[name].reshape(gradient.shape), gradient), name
    assert all(parameter.grad is None for parameter in trained.hf.parameters())


def test_estimates_are_change_times_gradient(
    trained: Trained, pair: Pair, estimated: AttributionResult
) -> None:
    places = heads_and_mlps(trained)
    here = autograd(trained, pair.corrupted, places, pair.mean_margin)
    there = autograd(trained, pair.clean, places, pair.mean_margin)["values"]
    product = {
        name: (there[name].double() - here["values"][name].double()) * gradient.double()
        for name, gradient in here["gradients"].items()
    }
    for i in range(trained.lens.cfg.n_layers):
        heads = product[f"blocks.{i}.attn.hook_z"].unflatten(-1, (trained.lens.cfg.n_heads, -1))
        close(estimated["head"][i], heads.movedim(2, 0).flatten(1), trained)
        close(estimated["mlp"][i], product[f"blocks.{i}.hook_mlp_out"].flatten(), trained)


def test_estimates_agree_with_patches_of_heads(estimated: AttributionResult, exact: Tensor) -> None:
    guess = estimated["head"].float()
    assert correlation(guess, exact) > 0.8
    for ranking in (guess, exact):
        largest = ranking.flatten().abs().topk(5).indices
        assert torch.equal(guess.flatten()[largest].sign(), exact.flatten()[largest].sign())


def test_integrated_gradients_agree_with_patches_of_mlps(
    trained: Trained, pair: Pair, clean_cache: ActivationCache
) -> None:
    """A first gradient alone is wrong about an early MLP on which all depends."""
    layers = range(trained.lens.cfg.n_layers)
    cells = [Cell(("mlp_out", layer), (everywhere, everywhere), clean_cache) for layer in layers]
    measured = trained.lens.sweep(pair.corrupted, cells, pair.mean_margin, baseline=True).effect()
    found = attribution_patch(
        trained.lens,
        pair.clean,
        pair.corrupted,
        pair.mean_margin,
        units=["mlp"],
        method="ig_inputs",
        steps=4,
    )
    assert correlation(found["mlp"], measured) > 0.8
    assert found["mlp"].argmax() == measured.argmax()


def test_edges_sum_to_what_their_receiver_reads(trained: Trained, pair: Pair) -> None:
    """At the logits, and at the queries of one head, whose gradient goes back through its norm."""
    lens, hf = trained.lens, trained.hf
    layers, heads = lens.cfg.n_layers, lens.cfg.n_heads
    chosen, head = layers - 3, 1
    layer = hf.model.layers[chosen]
    attn = layer.self_attn
    projected = attn.q_norm if hasattr(attn, "q_norm") else attn.q_proj
    places: Places = {
        "last": (hf.model.norm, "input"),
        "stream": (layer.input_layernorm, "input"),
        "queries": (projected, "output"),
    }
    edges = attribution_patch(
        lens, pair.clean, pair.corrupted, pair.mean_margin, granularity="edge"
    )
    here = autograd(trained, pair.corrupted, places, pair.mean_margin)
    there = autograd(trained, pair.clean, places, pair.mean_margin)["values"]
    stream = here["values"]["stream"].clone().requires_grad_()
    queries = attn.q_proj(layer.input_layernorm(stream)).unflatten(-1, (heads, -1)).transpose(1, 2)
    queries = attn.q_norm(queries) if hasattr(attn, "q_norm") else queries
    upstream = here["gradients"]["queries"]
    if upstream.ndim == 3:
        upstream = upstream.unflatten(-1, (heads, -1)).transpose(1, 2)
    (through,) = torch.autograd.grad(queries[:, head], stream, upstream[:, head])
    totals = edges["edge"].nan_to_num().sum(0)
    for node, name, gradient in (
        ("logits", "last", here["gradients"]["last"]),
        (f"a{chosen}.h{head}<q>", "stream", through),
    ):
        column = [str(receiver) for receiver in edges.receivers].index(node)
        product = (there[name].double() - here["values"][name].double()) * gradient.double()
        close(totals[column], product.flatten(), trained)


def test_the_largest_edges_agree_with_path_patches(trained: Trained, pair: Pair) -> None:
    """Into the logits they are the effects but for the last norm; MLPs are too far from linear."""
    edges = attribution_patch(
        trained.lens, pair.clean, pair.corrupted, pair.mean_margin, granularity="edge"
    )
    with torch.no_grad():
        base = pair.mean_margin(trained.hf(pair.corrupted).logits)
    largest = [edge for edge in edges.top_edges(12) if edge[1].kind != "mlp"][:6]
    assert {receiver.kind for _, receiver, _ in largest} == {"logits", "head"}
    for sender, receiver, score in largest:
        patched = path_patch(
            trained.lens, pair.clean, pair.corrupted, sender, receiver, pair.mean_margin
        )
        effect = float(patched - base)
        assert (effect > 0) == (score > 0), (sender, receiver)
        if receiver.kind == "logits":
            assert abs(effect - score) < 0.1 * abs(effect) + 0.1, (sender, receiver)

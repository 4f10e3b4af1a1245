"""Experts one by one, in models that stack their weights in forms of their own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from lensbridge_adapters.dbrx import DBRX
from lensbridge_adapters.dbrx import EXPERTS as DBRX_EXPERTS
from lensbridge_adapters.jetmoe import JETMOE
from lensbridge_adapters.llama4 import LLAMA4_TEXT
from torch import Tensor, nn

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import ArchitectureMismatchError, LoadError
from lensbridge.spec import Architecture, StackedExperts
from lensbridge.testing import CHECKS, Subject, run_check, tiny_model

IDS = torch.tensor([[5, 9, 17, 3, 11], [8, 2, 30, 7, 12]])


DESCRIBED = {one.name: one for one in (LLAMA4_TEXT, DBRX, JETMOE)}


@cache
def of_name(name: str) -> LensModel:
    try:
        return lensbridge.load(tiny_model(DESCRIBED[name]))
    except LoadError:  # transformers 5.14 runs DBRX only if its experts are as wide as the stream
        pytest.skip(f"this version of transformers does not run a tiny {name}")


def opened(architecture: Architecture) -> LensModel:
    return of_name(architecture.name)


@contextmanager
def hooked(module: nn.Module, see: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(see)
    try:
        yield
    finally:
        handle.remove()


def calls_of(model: LensModel, path: str) -> list[tuple[Any, Any]]:
    """What a module of the bare model reads and returns in each of its calls."""
    found: list[tuple[Any, Any]] = []
    bare = model.hf_model
    with (
        torch.no_grad(),
        hooked(bare.get_submodule(path), lambda _, args, out: found.append((args, out))),
    ):
        bare(IDS)
    return found


def bare_logits(model: LensModel) -> Tensor:
    with torch.no_grad():
        return model.hf_model(IDS).logits


def read(model: LensModel, *names: str) -> dict[str, Tensor]:
    _, cache = model.run_with_cache(IDS, names_filter=list(names))
    return {name: cache[name] for name in names}


def expert_points(model: LensModel, at: str) -> dict[str, Tensor]:
    n = model.native.blocks[0].mlp.experts.n  # type: ignore[union-attr]
    names = [f"{at}experts.{e}.hook_{last}" for e in range(n) for last in ("in", "out")]
    choices = [f"{at}hook_expert_indices", f"{at}hook_expert_weights"]
    return read(model, *names, *choices)


def test_experts_of_llama_4_read_the_rows_that_their_module_is_given() -> None:
    model = opened(LLAMA4_TEXT)
    [((given,), returned)] = calls_of(model, "model.layers.0.feed_forward.experts")
    [(_, (scores, _))] = calls_of(model, "model.layers.0.feed_forward.router")
    found = expert_points(model, "blocks.0.mlp.")
    n, tokens = scores.shape[1], scores.shape[0]
    for e in range(n):
        rows = scores[:, e].nonzero().flatten()
        read_by = found[f"blocks.0.mlp.experts.{e}.hook_in"]
        assert torch.equal(read_by, given.view(n, tokens, -1)[e, rows])
        written = returned.view(n, tokens, -1)[e, rows]
        torch.testing.assert_close(found[f"blocks.0.mlp.experts.{e}.hook_out"], written)
    indices = found["blocks.0.mlp.hook_expert_indices"].flatten(0, 1)
    weights = found["blocks.0.mlp.hook_expert_weights"].flatten(0, 1)
    assert torch.equal(torch.zeros_like(scores).scatter(1, indices, weights), scores)


def test_experts_of_dbrx_read_what_their_calls_read() -> None:
    model = opened(DBRX)
    calls = calls_of(model, "transformer.blocks.0.ffn.experts.mlp")
    found = expert_points(model, "blocks.0.mlp.")
    busy = [e for e in range(4) if len(found[f"blocks.0.mlp.experts.{e}.hook_in"])]
    assert len(busy) == len(calls) > 1
    for e, (args, out) in zip(busy, calls, strict=True):
        order = torch.cdist(found[f"blocks.0.mlp.experts.{e}.hook_in"], args[0]).argmin(-1)
        assert torch.equal(found[f"blocks.0.mlp.experts.{e}.hook_in"], args[0][order])
        torch.testing.assert_close(found[f"blocks.0.mlp.experts.{e}.hook_out"], out[order])


def test_experts_of_jetmoe_read_the_tokens_that_are_sorted_to_them() -> None:
    model = opened(JETMOE)
    [(_, routed)] = calls_of(model, "model.layers.0.mlp.router")
    [((given, sizes), _)] = calls_of(model, "model.layers.0.mlp.input_linear")
    [(_, returned)] = calls_of(model, "model.layers.0.mlp.output_linear")
    found = expert_points(model, "blocks.0.mlp.")
    start = 0
    for e, size in enumerate(sizes):
        own = slice(start, start + size)
        order = routed[1][own].argsort()
        assert torch.equal(found[f"blocks.0.mlp.experts.{e}.hook_in"], given[own][order])
        written = returned[own][order]
        torch.testing.assert_close(found[f"blocks.0.mlp.experts.{e}.hook_out"], written)
        start += size
    indices = found["blocks.0.mlp.hook_expert_indices"].flatten()
    weights = found["blocks.0.mlp.hook_expert_weights"].flatten()
    assert torch.equal(weights[routed[0]], routed[2])
    assert indices.bincount(minlength=len(sizes)).tolist() == sizes


DOWN = {
    "llama4_text": ("model.layers.0.feed_forward.experts.down_proj", False),
    "dbrx": ("transformer.blocks.0.ffn.experts.mlp.w2", True),
    "jetmoe": ("model.layers.0.mlp.output_linear.weight", False),
}
EACH = pytest.mark.parametrize(
    "architecture", [LLAMA4_TEXT, DBRX, JETMOE], ids=lambda one: str(one.name)
)


@EACH
def test_an_expert_without_output_is_one_without_its_down_projection(
    architecture: Architecture,
) -> None:
    model = opened(architecture)
    path, in_rows = DOWN[architecture.name]
    parameter = model.hf_model.get_parameter(path)
    kept = parameter.detach().clone()
    each = parameter.view(4, -1, parameter.shape[-1]) if in_rows else parameter
    with torch.no_grad():
        each[1].zero_()
    wanted = bare_logits(model)
    with torch.no_grad():
        parameter.copy_(kept)
    name = "blocks.0.mlp.experts.1.hook_out"
    found = model.run_with_hooks(IDS, fwd_hooks=[(name, lambda value, hook: value * 0)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, bare_logits(model), atol=1e-3)


@EACH
def test_weights_of_experts_are_views_of_the_parameters(architecture: Architecture) -> None:
    model = opened(architecture)
    path, in_rows = DOWN[architecture.name]
    parameter = model.hf_model.get_parameter(path).detach()
    wanted = parameter.view(4, -1, parameter.shape[-1]) if in_rows else parameter
    wanted = wanted.mT if architecture is JETMOE else wanted
    found = model.weight("blocks.0.mlp.W_out")
    assert torch.equal(found, wanted)
    assert found.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()


@EACH
def test_another_choice_of_experts_is_what_a_changed_router_makes(
    architecture: Architecture,
) -> None:
    """Logits of the router say the same choice as the indices and weights that follow from it."""
    model = opened(architecture)
    at = "blocks.0.mlp.hook_"

    def turned(value: Tensor, hook: Any) -> Tensor:
        return value.flip(-1)

    routed = [f"{at}expert_indices", f"{at}expert_weights"]
    with model.hooks(fwd_hooks=[(f"{at}router_logits", turned)]):
        wanted = model(IDS)
        choices = read(model, *routed)
    edits: list[Any] = [
        (name, lambda value, hook, new=choices[name]: new)  # type: ignore[misc]
        for name in routed
    ]
    found = model.run_with_hooks(IDS, fwd_hooks=edits)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, bare_logits(model), atol=1e-3)


def changed(**words: Any) -> Architecture:
    experts = replace(DBRX_EXPERTS, **words)
    block: Any = DBRX.block
    return replace(DBRX, block=replace(block, mlp=replace(block.mlp, experts=experts)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"layout": "rows"}, "experts.layout='rows' is not understood"),
        ({"given": "some"}, "experts.given='some' is not understood"),
        ({"gate": None}, "needs gate_up, or both gate and up"),
        ({"layout": "out_in"}, "in its first axis"),
        ({"gate_up": "mlp.w1"}, "needs gate_up, or both gate and up"),
        ({"down": "mlp.w3"}, "no tensor 'mlp.w3'"),
    ],
)
def test_what_a_description_says_wrong_is_told(words: dict[str, Any], told: str) -> None:
    model = opened(DBRX).hf_model
    with pytest.raises(ArchitectureMismatchError, match=told):
        lensbridge.load(model, architecture=changed(**words))


def fails(architecture: Architecture, block: Any, name: str) -> bool:
    """Whether a check fails on a description with another block, and not with its own."""
    model = opened(architecture).hf_model
    check = next(one for one in CHECKS if one.name == name)
    right, wrong = (
        run_check(check, Subject(model, {"input_ids": IDS}, one)).status
        for one in (architecture, replace(architecture, block=block))
    )
    return (right, wrong) == ("passed", "failed")


@EACH
def test_experts_that_are_left_out_are_missed(architecture: Architecture) -> None:
    blocks: Any = architecture.block if isinstance(architecture.block, tuple) else ()
    first: Any = blocks[0] if blocks else architecture.block
    without = replace(first, mlp=replace(first.mlp, experts=None, out_bias=None))
    block: Any = (without, *blocks[1:]) if blocks else without
    assert fails(architecture, block, "nothing is left out")


def test_what_is_added_to_the_experts_outputs_is_held() -> None:
    block: Any = JETMOE.block
    assert isinstance(block.mlp.experts, StackedExperts)
    wrong = replace(block, mlp=replace(block.mlp, out_bias=None))
    assert fails(JETMOE, wrong, "experts sum to mlp_out")

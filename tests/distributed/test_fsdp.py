"""FSDP2 (`fully_shard`): everything is as it is on the whole model, on every rank."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from distributed.models import double, ids, whole
from distributed.ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import lensbridge
from lensbridge.errors import ProcessingError, RanksError, WeightError

pytestmark = pytest.mark.ranks


def sharded(model: nn.Module, how: str, **options: Any) -> nn.Module:
    """A model whose parameters are spread over the ranks: `layers`, `root` or both."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    if "layers" in how:
        base = model.base_model
        for layer in base.h if hasattr(base, "h") else base.layers:
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options) if "root" in how else model


def hold_equal(model: Any, wanted: Any) -> None:
    """Every weight is that of the whole model."""
    assert model.weight_names == wanted.weight_names
    for name in wanted.weight_names:
        assert torch.equal(model.weight(name), wanted.weight(name)), name
        assert model.weight(name).dtype == wanted.weight(name).dtype
    assert torch.equal(model.W_Q[1, 2], wanted.W_Q[1, 2])
    assert torch.equal(model.blocks[1].attn.OV.AB, wanted.blocks[1].attn.OV.AB)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("how", ["layers and root", "root", "layers"])
@on_ranks(2)
def test_weights_before_and_after_a_run(family: str, reshard: bool, how: str) -> None:
    wanted = lensbridge.load(whole(family))
    model = lensbridge.load(sharded(whole(family), how, reshard_after_forward=reshard))
    hold_equal(model, wanted)
    with torch.no_grad():
        assert torch.equal(model(ids()), wanted(ids()))
        hold_equal(model, wanted)
        assert torch.equal(model(ids()), wanted(ids()))
    hold_equal(model, wanted)


@on_ranks(2)
def test_weights_in_another_order_on_another_rank() -> None:
    """A gather must not be paired with the gather of another layer."""
    model = lensbridge.load(sharded(whole(), "layers and root"))
    wanted = lensbridge.load(whole())
    layer = distributed.get_rank()
    with pytest.raises(RanksError, match=rf"transformer\.h\.{1 - layer}\.attn.*the same weights"):
        model.blocks[layer].attn.W_Q  # noqa: B018
    assert torch.equal(model.W_Q[1], wanted.W_Q[1])


@on_ranks(2)
def test_a_read_on_one_rank_only_ends() -> None:
    model = lensbridge.load(sharded(whole(), "layers and root"))
    wanted = lensbridge.load(whole())
    store = distributed.distributed_c10d._get_default_store()
    patience = store.timeout
    store.set_timeout(timedelta(seconds=1))
    if distributed.get_rank() == 0:
        with pytest.raises(RanksError, match=r"rank 1 did not come .* 1 s.*on every rank"):
            model.W_Q[0]
    store.set_timeout(patience)
    distributed.barrier()
    assert torch.equal(model.W_Q[0], wanted.W_Q[0])


@pytest.mark.parametrize("reshard", [True, False])
@on_ranks(2)
def test_writes_are_refused_also_while_a_module_holds_the_whole_parameter(reshard: bool) -> None:
    native = sharded(whole(), "layers and root", reshard_after_forward=reshard)
    model = lensbridge.load(native)

    def refuse() -> None:
        for name in ("blocks.0.attn.W_O", "embed.W_E", "unembed.W_U", "blocks.1.ln1.w"):
            assert model.weight_state(name) == "sharded"
            with pytest.raises(WeightError, match=r"fully_shard|copy of the model's weights"):
                model.weight(name).zero_()
            refused = rf"{name} cannot be edited.*(fully_shard|sharded)"
            with pytest.raises(WeightError, match=refused), model.edited({name: 0.0}):
                pass
        with pytest.raises(WeightError), torch.no_grad():
            model.blocks[0].mlp.W_in[0] += 1
        with pytest.raises((ProcessingError, WeightError), match=r"sharded|fully_shard"):
            model.process_weights_(fold_ln=True)

    refuse()
    with torch.no_grad():
        before = model(ids())
        refuse()
        inside = []
        model.run_with_hooks(
            ids(), fwd_hooks=[("hook_embed", lambda v, hook: inside.append(refuse()))]
        )
        assert len(inside) == 1
        assert torch.equal(model(ids()), before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("reshard", [True, False])
@on_ranks(2)
def test_the_stored_precision_is_read(reshard: bool, family: str) -> None:
    """`MixedPrecisionPolicy` runs the model in bfloat16; what is stored and read is float32."""
    options: dict[str, Any] = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}
    options["reshard_after_forward"] = reshard
    model = lensbridge.load(sharded(whole(family), "layers and root", **options))
    wanted, halved = lensbridge.load(whole(family)), lensbridge.load(whole(family).bfloat16())
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids())
        expected, others = halved.run_with_cache(ids())
    assert cache["resid_post", 0].dtype == torch.bfloat16
    if family == "gpt2":  # the other has a table of angles, which .bfloat16() rounds as well
        assert torch.equal(logits, expected)
        for name in others:
            assert torch.equal(cache[name], others[name]), name
    hold_equal(model, wanted)


EDITS = [("blocks.0.hook_resid_post", double), ("blocks.1.attn.hook_z", double)]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("how", ["layers and root", "root", "layers"])
@on_ranks(2)
def test_activations_edits_and_generated_text(family: str, reshard: bool, how: str) -> None:
    """Each rank has inputs of its own."""
    wanted = lensbridge.load(whole(family))
    model = lensbridge.load(sharded(whole(family), how, reshard_after_forward=reshard))
    everything = {"names_filter": wanted.hook_names}
    with torch.no_grad():
        for _ in range(2):
            logits, cache = model.run_with_cache(ids(), **everything)
            expected, others = wanted.run_with_cache(ids(), **everything)
            assert torch.equal(logits, expected)
            for name in others:
                assert torch.equal(cache[name], others[name]), name
        edited = wanted.run_with_hooks(ids(), fwd_hooks=EDITS)
        assert not torch.equal(edited, expected)
        assert torch.equal(model.run_with_hooks(ids(), fwd_hooks=EDITS), edited)
        for name, function in EDITS:
            model.add_hook(name, function)
        assert torch.equal(model.hf_model(ids()).logits, edited)
        model.reset_hooks(including_permanent=True)
        middle = model(ids(), stop_at_layer=1)
        assert torch.equal(middle, wanted(ids(), stop_at_layer=1))
        assert torch.equal(model(ids()), expected)
        assert torch.equal(model(middle, start_at_layer=1), expected)
        options = {"max_new_tokens": 4, "do_sample": False, "verbose": False}
        with wanted.hooks(fwd_hooks=EDITS):
            text = wanted.generate(ids(), **options)
        with model.hooks(fwd_hooks=EDITS):
            assert torch.equal(model.generate(ids(), **options), text)
        assert torch.equal(model(ids()), expected)
    hold_equal(model, wanted)


def averaged(model: Any, run: Any) -> dict[str, Any]:
    """Gradients of the whole model's parameters, the mean over the inputs of all ranks."""
    model.zero_grad()
    for rank in range(distributed.get_world_size()):
        (run(model, ids(rank)) / distributed.get_world_size()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("how", ["layers and root", "root", "layers"])
@on_ranks(2)
def test_gradients_with_edits(reshard: bool, how: str) -> None:
    """Those of activations are the rank's own, those of parameters the mean over the ranks."""
    wanted = lensbridge.load(whole())
    model = lensbridge.load(sharded(whole(), how, reshard_after_forward=reshard))
    _, cache = model.run_with_cache(ids(), incl_bwd=True, return_type="loss")
    _, others = wanted.run_with_cache(ids(), incl_bwd=True, return_type="loss")
    assert set(cache) == set(others)
    for name in others:
        assert torch.equal(cache[name], others[name]), name
    assert all(p.grad is None for p in model.parameters())

    def run(one: Any, tokens: Any) -> Any:
        return one.run_with_hooks(tokens, fwd_hooks=EDITS, return_type="loss")

    expected = averaged(wanted, run)
    for _ in range(2):
        model.zero_grad()
        run(model, ids()).backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        assert set(found) == set(expected)
        for name, grad in expected.items():
            held = found[name]
            assert held is not None, name
            whole_grad = held.full_tensor() if hasattr(held, "full_tensor") else held
            if how == "layers" and not hasattr(held, "full_tensor"):
                continue  # nothing adds up the gradients of what is not sharded
            torch.testing.assert_close(whole_grad, grad, msg=name)
    hold_equal(model, wanted)


def failing(value: Any, hook: Any) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("how", ["layers and root", "root", "layers"])
@on_ranks(2)
def test_runs_after_one_that_was_cut_short(reshard: bool, how: str) -> None:
    wanted = lensbridge.load(whole(layers=3))
    model = lensbridge.load(sharded(whole(layers=3), how, reshard_after_forward=reshard))

    def early(one: Any, tokens: Any) -> Any:
        return one(tokens, stop_at_layer=2).square().mean()

    def full(one: Any, tokens: Any) -> Any:
        return one(tokens, return_type="loss")

    for run in (early, full, early, full):
        model.zero_grad()  # before it is run: later it may hold whole parameters for a while
        with pytest.raises(ZeroDivisionError):
            model.run_with_hooks(ids(), fwd_hooks=[("blocks.1.hook_mlp_out", failing)])
        expected = averaged(wanted, run)
        run(model, ids()).backward()
        for name, held in model.named_parameters():
            if hasattr(held.grad, "full_tensor"):
                torch.testing.assert_close(held.grad.full_tensor(), expected[name], msg=name)
            elif how != "layers":
                assert held.grad is None or not held.grad.any(), name
                assert expected[name] is None or not expected[name].any(), name
        hold_equal(model, wanted)
        if how == "layers and root" and reshard:
            spread = [hasattr(p, "full_tensor") for p in model.hf_model.transformer.h.parameters()]
            assert all(spread)


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("how", ["layers and root", "root", "layers"])
@on_ranks(2)
def test_a_run_inside_a_hook(how: str, reshard: bool) -> None:
    wanted = lensbridge.load(whole(layers=3))
    model = lensbridge.load(sharded(whole(layers=3), how, reshard_after_forward=reshard))

    def run(one: Any, tokens: Any) -> Any:
        def inner(value: Any, hook: Any) -> Any:
            return value + one(tokens + 1, stop_at_layer=1) + one(tokens, return_type="loss")

        hooks = [("blocks.1.hook_mlp_out", inner)]
        return one.run_with_hooks(tokens, fwd_hooks=hooks, return_type="loss")

    with torch.no_grad():
        assert torch.equal(run(model, ids()), run(wanted, ids()))
    expected = averaged(wanted, run)
    for _ in range(2):
        model.zero_grad()
        loss = run(model, ids())
        assert torch.equal(loss, run(wanted, ids()))
        loss.backward()
        for name, held in model.named_parameters():
            if hasattr(held.grad, "full_tensor"):
                torch.testing.assert_close(held.grad.full_tensor(), expected[name], msg=name)
    hold_equal(model, wanted)

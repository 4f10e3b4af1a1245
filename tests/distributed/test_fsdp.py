"""FSDP2 (`fully_shard`): everything is as it is on the whole model, on every rank."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from distributed.models import ids, whole
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


@pytest.mark.parametrize("reshard", [True, False])
@on_ranks(2)
def test_the_stored_precision_is_read(reshard: bool) -> None:
    """`MixedPrecisionPolicy` runs the model in bfloat16; what is stored and read is float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    native = sharded(whole(), "layers and root", reshard_after_forward=reshard, mp_policy=policy)
    model, wanted = lensbridge.load(native), lensbridge.load(whole())
    halved = whole().bfloat16()
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids())
        expected, others = lensbridge.load(halved).run_with_cache(ids())
    assert cache["resid_post", 0].dtype == torch.bfloat16
    assert torch.equal(logits, expected)
    for name in others:
        assert torch.equal(cache[name], others[name]), name
    hold_equal(model, wanted)

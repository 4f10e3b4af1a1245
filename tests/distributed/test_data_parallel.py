"""`DistributedDataParallel`, `DataParallel`: opened; only the wrapper averages gradients."""

from typing import Any

import pytest
import torch
import torch.distributed as distributed
from distributed.models import double, ids, whole
from distributed.ranks import on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lensbridge
from lensbridge.errors import HookNeverFiredError

pytestmark = pytest.mark.ranks

EDITS = [("blocks.0.hook_resid_post", double), ("blocks.1.attn.hook_z", double)]


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def gradients(model: nn.Module) -> dict[str, Any]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("wrap", ["DistributedDataParallel", "DataParallel"])
@on_ranks(2)
def test_everything_is_as_on_the_bare_model(wrap: str) -> None:
    bare = whole()
    wrapped = {"DataParallel": nn.DataParallel, "DistributedDataParallel": DistributedDataParallel}
    around = wrapped[wrap](bare)
    model, wanted = lensbridge.load(around), lensbridge.load(whole())
    assert model.hf_model is bare
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids(), names_filter=model.hook_names)
        expected, others = wanted.run_with_cache(ids(), names_filter=model.hook_names)
        assert torch.equal(logits, expected)
        for name in others:
            assert torch.equal(cache[name], others[name]), name
        edited = wanted.run_with_hooks(ids(), fwd_hooks=EDITS)
        with model.hooks(fwd_hooks=EDITS):
            assert torch.equal(around(ids()).logits, edited)
            assert torch.equal(model(ids()), edited)
        with pytest.raises(HookNeverFiredError), model.hooks(fwd_hooks=EDITS):
            pass
    for name in wanted.weight_names:
        assert torch.equal(model.weight(name), wanted.weight(name)), name
    assert {model.weight_state(name) for name in model.weight_names} == {"plain"}
    with torch.no_grad():
        model.W_O[0, 1] = 0.0
    assert not bare.transformer.h[0].attn.c_proj.weight[6:12].any()


@on_ranks(2)
def test_gradients_are_averaged_where_the_wrapper_is_called() -> None:
    bare = whole()
    around = DistributedDataParallel(bare)
    model = lensbridge.load(around)

    def expected(rank: int) -> dict[str, Tensor]:
        lens = lensbridge.load(whole())
        loss_of(lens.run_with_hooks(ids(rank), fwd_hooks=EDITS), ids(rank)).backward()
        return gradients(lens.hf_model)

    each = [expected(rank) for rank in range(2)]
    for _ in range(2):
        bare.zero_grad()
        with model.hooks(fwd_hooks=EDITS):
            loss_of(around(ids()).logits, ids()).backward()
        for name, grad in gradients(bare).items():
            torch.testing.assert_close(grad, (each[0][name] + each[1][name]) / 2, msg=name)
        bare.zero_grad()
        loss_of(model.run_with_hooks(ids(), fwd_hooks=EDITS), ids()).backward()
        for name, grad in gradients(bare).items():
            torch.testing.assert_close(grad, each[distributed.get_rank()][name], msg=name)

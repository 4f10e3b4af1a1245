"""What `make test` runs on two ranks: one sharded model. The rest is in `make ranks`."""

import pytest
import torch
from distributed.models import double, ids, whole
from distributed.ranks import on_ranks
from torch.distributed.fsdp import fully_shard

import lensbridge
from lensbridge.errors import WeightError


@on_ranks(2)
def test_a_sharded_model_is_as_the_whole_one() -> None:
    native = whole()
    for layer in native.transformer.h:
        fully_shard(layer)
    model, wanted = lensbridge.load(fully_shard(native)), lensbridge.load(whole())
    hooks = [("blocks.0.hook_mlp_out", double)]
    for _ in range(2):
        for name in ("blocks.1.attn.W_Q", "blocks.0.mlp.b_in", "embed.W_E"):
            assert torch.equal(model.weight(name), wanted.weight(name)), name
        with torch.no_grad():
            edited = model.run_with_hooks(ids(), fwd_hooks=hooks)
            assert torch.equal(edited, wanted.run_with_hooks(ids(), fwd_hooks=hooks))
    with pytest.raises(WeightError):
        model.blocks[1].attn.W_Q.zero_()

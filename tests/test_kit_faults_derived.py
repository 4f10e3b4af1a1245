"""What is derived passes the checks that an adapter has to pass, and says what it leaves out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from lensbridge_adapters.mixtral import MIXTRAL
from plain_models import CausalSelfAttention, NanoConfig, NanoGPT, seeded
from torch import Tensor, nn

import lensbridge
from lensbridge.conformance.tiny import tiny_from
from lensbridge.derive import check, derive
from lensbridge.derive.phrases import words_for
from lensbridge.derive.reasons import explain
from lensbridge.errors import LensbridgeError
from lensbridge.spec import Architecture, Attention, FusedQKV, KernelQKV
from lensbridge.testing import CHECKS, conformance, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

NOTHING_LEFT_OUT = [one for one in CHECKS if one.name == "nothing is left out"]


def complaint(model: nn.Module, architecture: Architecture) -> str:
    """What is left out, as the kit says it."""
    report = conformance(model, architecture=architecture, checks=NOTHING_LEFT_OUT)
    return " ".join(row.detail for row in report.failures)


def test_experts_are_left_out_only_for_a_reason() -> None:
    model = tiny_model(MIXTRAL)
    mlp = MIXTRAL.block.mlp  # type: ignore[union-attr]
    block = replace(MIXTRAL.block, mlp=replace(mlp, experts=None))  # type: ignore[type-var]
    without = replace(MIXTRAL, block=block)
    because = {"experts": "nobody looked into them"}
    assert "stacked experts, and they are not described" in complaint(model, without)
    assert complaint(model, replace(without, undescribed=because)) == ""
    assert "undescribed['experts']" in complaint(model, replace(MIXTRAL, undescribed=because))
    lens = lensbridge.load(model, architecture=replace(without, undescribed=because))
    with pytest.raises(LensbridgeError, match=r"experts .* are not described.*nobody looked"):
        lens.run_with_cache([[5, 9]], names_filter="blocks.0.mlp.experts.0.hook_post")


def unreturned() -> nn.Module:
    """A model that runs a pooler, and does not return what it makes."""
    cls: Any = transformers.BigBirdForCausalLM
    model: nn.Module = tiny_from(cls, {}, torch.float32, None, seed=0)
    return model


def test_a_pooler_that_is_not_returned_is_found() -> None:
    model: Any = unreturned()
    found = derive(model).architecture
    assert found is not None
    made: list[Tensor] = []
    handle = model.bert.activation.register_forward_hook(lambda *all: made.append(all[-1]))
    lens = lensbridge.load(model, architecture=found)
    _, cache = lens.run_with_cache([[5, 9, 7]])
    handle.remove()
    torch.testing.assert_close(cache["hook_pooler_out"], made[-1], rtol=0, atol=0)
    assert complaint(model, found) == ""
    because = {"pooler": "it reads one position"}
    assert "makes one vector" in complaint(model, replace(found, pooler=None))
    assert complaint(model, replace(found, pooler=None, undescribed=because)) == ""
    assert "undescribed['pooler']" in complaint(model, replace(found, undescribed=because))
    lens = lensbridge.load(model, architecture=replace(found, pooler=None, undescribed=because))
    with pytest.raises(LensbridgeError, match=r"pooler .* is not described.*reads one position"):
        lens.run_with_cache([[5, 9]], names_filter="hook_pooler_out")


def test_embeddings_before_a_projection_are_found() -> None:
    cls: Any = transformers.FNetForMaskedLM
    found = derive(tiny_from(cls, {}, torch.float32, None, seed=0)).architecture
    assert found is not None
    assert found.pos_embed == "fnet.embeddings.position_embeddings"
    assert found.embed_norm == "fnet.embeddings.LayerNorm"
    assert found.pooler == "fnet.pooler"


class KeysFirst(CausalSelfAttention):
    """One projection with keys, values and queries, in this order."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        k, v, q = (
            one.view(b, t, self.n_head, -1).transpose(1, 2) for one in self.c_attn(x).split(c, 2)
        )
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(z.transpose(1, 2).flatten(2))


def keys_first() -> NanoGPT:
    """A model without rotary, whose attention has another order than usual."""
    config = NanoConfig()
    model = NanoGPT(config)
    for layer in model.transformer["h"]:  # type: ignore[union-attr]
        layer.attn = KeysFirst(config, flash=True)
    seeded(model)
    return model


def test_other_orders_of_one_projection_are_found() -> None:
    model: Any = keys_first()
    found = derive(model).architecture
    assert found is not None
    attn = found.block.attn  # type: ignore[union-attr]
    assert attn is not None
    assert attn.qkv == FusedQKV("c_attn", layout="blocked", order="kvq")
    assert not attn.rotary
    made: list[Tensor] = []
    handle = model.transformer.h[0].attn.c_attn.register_forward_hook(
        lambda *all: made.append(all[-1])
    )
    lens = lensbridge.load(model, architecture=found)
    cache = lens.run_with_cache(torch.tensor([[5, 9, 7]]))[1]
    handle.remove()
    for role, start in (("k", 0), ("v", 24), ("q", 48)):
        wanted = made[-1][..., start : start + 24].unflatten(-1, (4, 6))
        torch.testing.assert_close(cache[f"blocks.0.attn.hook_{role}"], wanted, rtol=0, atol=0)


FAILED = "projections make q, k and v: blocks.0.attn.hook_q should be x @ W_Q; they differ by 3."


def test_what_is_told_is_what_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([FAILED, None])
    monkeypatch.setattr(check, "first_failure", lambda *_: next(answers))
    model = keys_first()
    found = check.accepted(model, derive(model))
    told = "\n".join(found.established)
    assert "'attn' at its boundaries" in told
    assert "attention" not in told
    assert found.architecture is not None
    assert found.architecture.undescribed == {
        "attn": "its queries, keys and values are not what the projections that were found make of "
        "the stream"
    }


def test_reasons_are_sentences() -> None:
    mlp = MIXTRAL.block.mlp  # type: ignore[union-attr]
    attn = Attention("self_attn", qkv=KernelQKV(), out="o_proj")
    block = replace(
        MIXTRAL.block,  # type: ignore[type-var]
        residual=None,
        attn=attn,
        mlp=replace(mlp, experts=None),  # type: ignore[type-var]
    )
    missing = {
        "residual": "the stream adds up: blocks.0.hook_resid_mid should be a + b; they differ.",
        "experts": "rows do not meet: blocks.0 should be the same",
    }
    found = explain(replace(MIXTRAL, block=block), missing)
    assert found.undescribed == {
        "residual": "what its branches give does not add up to the stream",
        "experts": "what was derived of it does not pass the check 'rows do not meet'",
    }
    inside = next(line for line in words_for(found) if line.startswith("in each layer"))
    assert "attention 'self_attn' from what its kernel gets, MoE 'mlp'" in inside

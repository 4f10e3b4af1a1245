"""Layers that are no modules, but one module of each of several lists (XLM, FlauBERT)."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lensbridge_adapters.xlm import FLAUBERT, XLM
from raw import record
from torch import Tensor, nn
from transformers import (
    FlaubertConfig,
    FlaubertWithLMHeadModel,
    PreTrainedModel,
    XLMConfig,
    XLMModel,
    XLMWithLMHeadModel,
)

import lensbridge
from lensbridge.errors import ArchitectureMismatchError, UnsupportedArchitectureError
from lensbridge.hooks.callbacks import Hook
from lensbridge.testing import conformance

SIZES = {
    "vocab_size": 61,
    "emb_dim": 24,
    "n_layers": 3,
    "n_heads": 3,
    "max_position_embeddings": 16,
}
CLASSES = {
    "xlm": (XLMWithLMHeadModel, XLMConfig),
    "flaubert": (FlaubertWithLMHeadModel, FlaubertConfig),
}


def built(family: str = "xlm", **fields: Any) -> PreTrainedModel:
    cls, config = CLASSES[family]
    torch.manual_seed(0)
    model = cls(config(**SIZES, embed_init_std=1.0, init_std=0.3, **fields)).eval()
    return model.requires_grad_(False)


def ids() -> Tensor:
    return torch.randint(5, 61, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", list(CLASSES))
@pytest.mark.parametrize("causal", [True, False])
def test_every_layer_is_read_where_it_is(family: str, causal: bool) -> None:
    hf = built(family, causal=causal)
    raw = record(hf, input_ids=ids())
    states = hf(ids(), output_hidden_states=True, output_attentions=True)
    logits, cache = lensbridge.load(hf).run_with_cache(ids())
    assert torch.equal(logits, raw.logits)
    body = hf.transformer
    for i in range(3):
        own = {
            "hook_resid_pre": states.hidden_states[i],
            "hook_resid_post": states.hidden_states[i + 1],
            "hook_attn_out": raw.outputs[body.attentions[i]],
            "hook_mlp_out": raw.outputs[body.ffns[i]],
            "hook_resid_mid": raw.outputs[body.layer_norm1[i]],
            "mlp.hook_pre": raw.outputs[body.ffns[i].lin1],
            "mlp.hook_post": raw.inputs[body.ffns[i].lin2],
            "attn.hook_q": raw.outputs[body.attentions[i].q_lin].unflatten(-1, (3, 8)),
            "attn.hook_z": raw.inputs[body.attentions[i].out_lin].unflatten(-1, (3, 8)),
            "attn.hook_pattern": states.attentions[i],
        }
        for point, value in own.items():
            assert torch.equal(cache[f"blocks.{i}.{point}"], value), point


def zero_first(module: nn.Module, args: Any) -> None:
    args[0][:, 0] = 0.0  # the tensor that the skip connection reads too


@pytest.mark.parametrize("family", list(CLASSES))
def test_an_edit_of_the_stream_reaches_the_branch_and_the_skip(family: str) -> None:
    hf = built(family)
    handle = hf.transformer.attentions[1].register_forward_pre_hook(zero_first)
    wanted = hf(ids()).logits
    handle.remove()

    def returned(stream: Tensor, hook: Hook) -> Tensor:
        return torch.cat([torch.zeros_like(stream[:, :1]), stream[:, 1:]], 1)

    def in_place(stream: Tensor, hook: Hook) -> None:
        stream[:, 0] = 0.0

    lens = lensbridge.load(hf)
    for edit in (returned, in_place):
        for name in ("blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"):
            assert torch.equal(lens.run_with_hooks(ids(), fwd_hooks=[(name, edit)]), wanted), name


def test_runs_start_and_stop_between_layers() -> None:
    hf, lens = (hf := built()), lensbridge.load(hf)
    states = hf(ids(), output_hidden_states=True).hidden_states
    logits = hf(ids()).logits
    for layer in range(4):
        assert torch.equal(lens(ids(), stop_at_layer=layer), states[layer])
        assert torch.equal(lens(states[layer].clone(), start_at_layer=layer), logits)


def test_the_stream_read_as_logits_goes_through_the_head() -> None:
    hf, lens = (hf := built()), lensbridge.load(hf)
    states = hf(ids(), output_hidden_states=True).hidden_states
    found = lens.logit_lens(ids())
    wanted = hf.pred_layer.proj(states[-1])[:, -1].log_softmax(-1)
    torch.testing.assert_close(found.values[-1].log_softmax(-1), wanted)


def test_in_training_mode_a_branch_is_read_after_its_dropout() -> None:
    hf = built(dropout=0.4).train()
    lens = lensbridge.load(hf)
    torch.manual_seed(3)
    _, cache = lens.run_with_cache(ids())
    added = cache["blocks.0.hook_attn_out"]
    zeros = (added == 0).float().mean()
    assert 0.2 < float(zeros) < 0.6
    total = cache["blocks.0.hook_resid_pre"] + added
    assert torch.equal(hf.transformer.layer_norm1[0](total), cache["blocks.0.hook_resid_mid"])


def test_a_bare_base_model_is_read_too() -> None:
    torch.manual_seed(0)
    hf = XLMModel(XLMConfig(**SIZES)).eval()
    lens = lensbridge.load(hf)
    states = hf(ids(), output_hidden_states=True).hidden_states
    cache = lens.run_with_cache(ids(), return_type=None)[1]
    assert torch.equal(cache["blocks.2.hook_resid_post"], states[3])


def test_padded_rows_are_read_before_the_mask_is_applied() -> None:
    """The model zeroes padding in the tensor that its last norm returned."""
    hf, mask = built(causal=False), torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = 0
    raw = hf(ids(), attention_mask=mask, output_hidden_states=True)
    logits, cache = lensbridge.load(hf).run_with_cache(ids(), attention_mask=mask)
    assert torch.equal(logits, raw.logits)
    post, real = cache["blocks.1.hook_resid_post"], mask.bool()
    assert torch.equal(post[real], raw.hidden_states[2][real])
    assert torch.equal(cache["blocks.2.hook_resid_pre"], raw.hidden_states[2])


def test_lists_that_do_not_go_together_are_refused() -> None:
    hf = built()
    wrong = {
        ("transformer.attentions", "pred_layer"): "not a list of layers",
        ("transformer.attentions", "transformer.attentions"): "block 0 has no module 'layer_norm1'",
        (): "none is named",
        ("transformer.attentions", "transformer.missing"): "missing",
    }
    for blocks, words in wrong.items():
        with pytest.raises(ArchitectureMismatchError, match=words):
            lensbridge.load(hf, architecture=replace(XLM, blocks=blocks))
    hf.transformer.ffns = hf.transformer.ffns[:2]
    with pytest.raises(ArchitectureMismatchError, match=r"attentions' has 3, .*ffns' has 2"):
        lensbridge.load(hf)


def test_a_flaubert_that_transformers_cannot_run_is_refused() -> None:
    """With `pre_norm` its own forward fails (it takes an item of a cache that has none)."""
    with pytest.raises(UnsupportedArchitectureError, match="pre_norm"):
        lensbridge.load(built("flaubert", pre_norm=True), derive=False)


@pytest.mark.matrix
def test_it_conforms() -> None:
    for family, architecture in (("xlm", XLM), ("flaubert", FLAUBERT)):
        conformance(built(family), architecture=architecture).require()

"""XLNet: positions before the batch, projections that are parameters, and two streams."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, XLNetConfig, XLNetLMHeadModel

import lensbridge
from lensbridge import patching
from lensbridge.errors import HookError
from lensbridge.hooks.callbacks import Hook

SIZES = {"vocab_size": 61, "d_model": 24, "n_layer": 3, "n_head": 3, "d_inner": 20}


def built(**fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = XLNetConfig(
        **SIZES, initializer_range=0.3, dropout=fields.pop("dropout", 0.0), **fields
    )
    return XLNetLMHeadModel(config).eval().requires_grad_(False)


def ids() -> Tensor:
    return torch.randint(5, 61, (2, 7), generator=torch.Generator().manual_seed(1))


def turned(value: Tensor) -> Tensor:
    return value.transpose(0, 1)


def raw_layer(hf: PreTrainedModel, i: int) -> dict[str, Tensor]:
    """What plain hooks see in one layer, with the batch first, and what follows from it."""
    seen: dict[str, Tensor] = {}
    layer = hf.transformer.layer[i]

    def keep(name: str, side: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            value = args[0] if side == 0 else output
            seen[name] = value if isinstance(value, Tensor) else value[0]

        return hook

    handles = [
        layer.register_forward_hook(keep("hook_resid_pre", 0)),
        layer.register_forward_hook(keep("hook_resid_post", 1)),
        layer.rel_attn.register_forward_hook(keep("hook_resid_mid", 1)),
        layer.ff.layer_1.register_forward_hook(keep("mlp.hook_pre", 1)),
        layer.ff.layer_2.register_forward_hook(keep("mlp.hook_post", 0)),
        layer.ff.layer_2.register_forward_hook(keep("hook_mlp_out", 1)),
    ]
    patterns = hf(ids(), output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    attn, stream = layer.rel_attn, seen["hook_resid_pre"]
    for letter in "qkv":
        weight = getattr(attn, letter)
        seen[f"attn.hook_{letter}"] = torch.einsum("ibh,hnd->ibnd", stream, weight)
    seen["attn.hook_z"] = torch.einsum("bnij,jbnd->ibnd", patterns[i], seen["attn.hook_v"])
    seen["hook_attn_out"] = torch.einsum("ibnd,hnd->ibh", seen["attn.hook_z"], attn.o)
    return {"attn.hook_pattern": patterns[i], **{k: turned(v) for k, v in seen.items()}}


def test_every_point_has_the_batch_first() -> None:
    hf = built()
    logits, cache = lensbridge.load(hf).run_with_cache(ids())
    assert torch.equal(logits, hf(ids()).logits)
    for i in range(3):
        for point, value in raw_layer(hf, i).items():
            assert torch.equal(cache[f"blocks.{i}.{point}"], value), point


def test_weights_are_the_parameters() -> None:
    hf, lens = (hf := built()), lensbridge.load(hf)
    attn = hf.transformer.layer[1].rel_attn
    for letter in "qkv":
        wanted = getattr(attn, letter).permute(1, 0, 2)
        torch.testing.assert_close(lens.weight(f"blocks.1.attn.W_{letter.upper()}"), wanted)
    torch.testing.assert_close(lens.weight("blocks.1.attn.W_O"), attn.o.permute(1, 2, 0))


@pytest.mark.parametrize("letter", ["q", "k", "v"])
def test_an_edit_of_a_head_is_what_another_parameter_would_give(letter: str) -> None:
    hf = built()
    lens, parameter = lensbridge.load(hf), getattr(hf.transformer.layer[1].rel_attn, letter)

    def without_head_2(value: Tensor, hook: Hook) -> None:
        value[:, :, 2] = 0.0

    found = lens.run_with_hooks(ids(), fwd_hooks=[(f"blocks.1.attn.hook_{letter}", without_head_2)])
    kept = parameter[:, 2].clone()
    parameter[:, 2] = 0.0
    wanted = hf(ids()).logits
    parameter[:, 2] = kept
    assert torch.equal(found, wanted)
    assert not torch.equal(found, hf(ids()).logits)


def test_gradients_are_autograds() -> None:
    hf = built().requires_grad_(True)
    lens = lensbridge.load(hf)
    held: dict[str, Tensor] = {}

    def hold(value: Tensor, hook: Hook) -> None:
        value.retain_grad()
        held["q"] = value

    out = lens.run_with_hooks(ids(), fwd_hooks=[("blocks.0.attn.hook_q", hold)])
    out[0, -1].sum().backward()
    stream = turned(hf.transformer.word_embedding(ids()))
    wanted = torch.einsum("ibh,bind->hnd", stream, held["q"].grad)
    torch.testing.assert_close(hf.transformer.layer[0].rel_attn.q.grad, wanted)


def test_runs_start_and_stop_between_layers() -> None:
    hf, lens = (hf := built()), lensbridge.load(hf)
    states = hf(ids(), output_hidden_states=True).hidden_states
    logits = hf(ids()).logits
    for layer in range(4):
        assert torch.equal(lens(ids(), stop_at_layer=layer), states[layer])
        assert torch.equal(lens(states[layer], start_at_layer=layer), logits)


def test_the_stream_read_as_logits_goes_through_the_head() -> None:
    hf, lens = (hf := built()), lensbridge.load(hf)
    states = hf(ids(), output_hidden_states=True).hidden_states
    found = lens.logit_lens(ids()).values[-1]
    wanted = hf.lm_loss(states[-1])[:, -1]
    torch.testing.assert_close(found.log_softmax(-1), wanted.log_softmax(-1))


def test_a_padded_row_is_read_as_alone() -> None:
    lens = lensbridge.load(built())
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :2] = 0
    both = lens.run_with_cache(ids(), attention_mask=mask)[1]
    alone = lens.run_with_cache(ids()[:1, 2:])[1]
    for point in ("resid_post", "z", "mlp_post"):
        torch.testing.assert_close(both[point, 2][:1, 2:], alone[point, 2], atol=1e-5, rtol=1e-5)


def test_in_training_mode_a_branch_is_read_after_its_dropout() -> None:
    hf = built(dropout=0.4).train()
    _, cache = lensbridge.load(hf).run_with_cache(ids())
    for point, norm in (("attn_out", "rel_attn"), ("mlp_out", "ff")):
        added = cache[point, 0]
        assert 0.2 < float((added == 0).float().mean()) < 0.6
        stream, after = (
            ("resid_pre", "resid_mid") if norm == "rel_attn" else ("resid_mid", "resid_post")
        )
        total = turned(cache[stream, 0] + added).contiguous()
        own = getattr(hf.transformer.layer[0], norm).layer_norm
        torch.testing.assert_close(turned(own(total)), cache[after, 0])


def two_streams() -> dict[str, Tensor]:
    mapping = torch.zeros(2, 1, 7)
    mapping[:, 0, -1] = 1.0
    return {"target_mapping": mapping, "perm_mask": torch.zeros(2, 7, 7)}


def test_the_stream_of_the_tokens_is_read_beside_a_second_one() -> None:
    hf, lens = (hf := built()), lensbridge.load(hf)
    plain = hf(ids(), output_hidden_states=True).hidden_states
    logits, cache = lens.run_with_cache(ids(), names_filter="hook_resid_post", **two_streams())
    assert torch.equal(logits, hf(ids(), **two_streams()).logits)
    for i in range(3):
        torch.testing.assert_close(cache["resid_post", i], plain[i + 1])


@pytest.mark.parametrize("point", ["hook_resid_mid", "attn.hook_q", "attn.hook_z", "mlp.hook_post"])
def test_a_point_that_two_streams_pass_is_refused(point: str) -> None:
    with pytest.raises(HookError, match="two streams"):
        lensbridge.load(built()).run_with_cache(
            ids(), names_filter=f"blocks.0.{point}", **two_streams()
        )


def test_a_sweep_patches_what_single_runs_patch() -> None:
    lens = lensbridge.load(built())
    clean, corrupted = ids()[:1], ids()[1:]
    cache = lens.run_with_cache(clean)[1]

    def difference(logits: Tensor) -> Tensor:
        return logits[0, -1, 5] - logits[0, -1, 6]

    found = patching.get_act_patch_resid_pre(lens, corrupted, cache, difference)
    for layer in range(3):
        for position in range(7):

            def patch(stream: Tensor, hook: Hook, position: int = position) -> None:
                stream[:, position] = cache[hook.name][:, position]

            name = f"blocks.{layer}.hook_resid_pre"
            wanted = difference(lens.run_with_hooks(corrupted, fwd_hooks=[(name, patch)]))
            torch.testing.assert_close(found[layer, position], wanted)

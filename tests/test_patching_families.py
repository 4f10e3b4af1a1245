"""Patching of hybrids, encoder-decoders and latent attention, against the bare models."""

from functools import partial
from typing import Any

import pytest
import torch
from described import of_class
from tiny_models import tokens
from torch import Tensor, nn

from lensbridge import patching as P
from lensbridge.errors import AbsentPointError

family = partial(of_class, dtype=torch.float64)


def metric(logits: Tensor) -> Tensor:
    """Reads every position and is not linear."""
    return (logits.softmax(-1)[:, :, 7] * torch.arange(1, logits.shape[1] + 1)).sum(1).mean()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def outputs_of(hf: Any, module: nn.Module, **call: Tensor) -> Tensor:
    """What a module gives in a bare run."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda _, args, out: found.append(out))
    hf(**call)
    handle.remove()
    return found[0] if isinstance(found[0], Tensor) else found[0][0]


def logits_replacing(hf: Any, module: nn.Module, value: Tensor, **call: Tensor) -> Tensor:
    """Logits of a bare run in which a module gives something else."""

    def replaced(_: nn.Module, args: Any, out: Any) -> Any:
        return value if isinstance(out, Tensor) else (value, *out[1:])

    handle = module.register_forward_hook(replaced)
    try:
        return hf(**call).logits
    finally:
        handle.remove()


def test_layers_without_attention_are_left_out() -> None:
    model = family("JambaForCausalLM")
    clean, corrupted = tokens(2, 4), tokens(2, 4, seed=1)
    _, cached = model.run_with_cache(clean)
    result = P.get_act_patch_attn_head_q_all_pos(model, corrupted, cached, metric, baseline=True)
    assert result.grid.axis_values == ((1,), (0, 1, 2, 3))
    assert result.index_df.layer.tolist() == [1] * 4
    hf: Any = model.hf_model
    query = hf.model.layers[1].self_attn.q_proj
    theirs, ours = (outputs_of(hf, query, input_ids=one) for one in (clean, corrupted))
    d = theirs.shape[-1] // 4
    for head in range(4):
        mixed = ours.clone()
        mixed[..., head * d : (head + 1) * d] = theirs[..., head * d : (head + 1) * d]
        wanted = metric(logits_replacing(hf, query, mixed, input_ids=corrupted))
        close(result[0, head], wanted)
    every = P.get_act_patch_block_every(model, corrupted, cached, metric)
    assert every.shape == (3, 2, 4)
    assert every[1, 0].isnan().all()  # the first layer has a mixer instead
    assert not every[[0, 2]].isnan().any()
    assert not every[1, 1].isnan().any()


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_either_stack_of_an_encoder_decoder(stack: str) -> None:
    model = family("BartForConditionalGeneration")
    hf: Any = model.hf_model
    clean, corrupted = (
        {"input_ids": tokens(2, 6, seed), "decoder_input_ids": tokens(2, 4, seed + 2)}
        for seed in (0, 1)
    )
    _, cached = model.run_with_cache(clean)
    result = P.generic_activation_patch(
        model,
        corrupted,
        cached,
        metric,
        P.layer_pos_patch_setter,
        f"{stack}.{{i}}.hook_mlp_out",
        ("layer", "pos"),
    )
    assert result.shape == (2, 6 if stack == "encoder" else 4)
    down = getattr(hf.model, stack).layers[1].fc2
    theirs, ours = (outputs_of(hf, down, **one) for one in (clean, corrupted))
    for pos in range(result.shape[1]):
        mixed = ours.clone()
        mixed[:, pos] = theirs[:, pos]
        close(result[1, pos], metric(logits_replacing(hf, down, mixed, **corrupted)))
    if stack == "decoder":  # the main one, which short names mean
        close(P.get_act_patch_mlp_out(model, corrupted, cached, metric), result)


def test_keys_of_latent_attention_are_patched_behind_rotary() -> None:
    """One head's clean key, of which all heads share a part until then."""
    model = family("DeepseekV3ForCausalLM")
    clean, corrupted = tokens(2, 4), tokens(2, 4, seed=1)
    _, cached = model.run_with_cache(clean)
    names = [(name, 1) for name in ("rot_q", "rot_k", "attn_scores")]
    _, own = model.run_with_cache(corrupted, names_filter=names)

    def raw(keys: Tensor) -> Tensor:
        return torch.einsum("bqhd,bkhd->bhqk", own["rot_q", 1], keys)

    scores = own["attn_scores", 1]
    scale = (scores / raw(own["rot_k", 1]))[:, :, -1:, :1]
    mixed = (raw(cached["rot_k", 1]) * scale).masked_fill(scores == -torch.inf, -torch.inf)
    found = P.get_act_patch_attn_head_k_all_pos(model, corrupted, cached, metric)
    for head in range(4):

        def put(scores: Tensor, hook: Any, head: int = head) -> None:
            scores[:, head] = mixed[:, head]

        logits = model.run_with_hooks(corrupted, [("blocks.1.attn.hook_attn_scores", put)])
        torch.testing.assert_close(found[1, head], metric(logits), rtol=1e-6, atol=1e-8)


def test_what_a_model_lacks_is_said() -> None:
    model = family("MambaForCausalLM")
    ids = tokens(2, 4)
    _, cached = model.run_with_cache(ids)
    with pytest.raises(AbsentPointError):
        P.get_act_patch_attn_head_out_all_pos(model, ids, cached, metric)
    assert P.get_act_patch_resid_pre(model, ids, cached, metric).shape == (2, 4)


@pytest.mark.parametrize("name", ["MambaForCausalLM", "KimiLinearForCausalLM"])
def test_what_no_layer_has_is_nan_beside_what_there_is(name: str) -> None:
    model = family(name)
    clean, corrupted = tokens(2, 4), tokens(2, 4, seed=1)
    _, cached = model.run_with_cache(clean)
    given = (model, corrupted, cached, metric)
    if name == "MambaForCausalLM":
        found = P.get_act_patch_block_every(*given)
        close(found[0], P.get_act_patch_resid_pre(*given))
        assert found[1:].isnan().all()
        with pytest.raises(AbsentPointError):
            P.get_act_patch_attn_head_all_pos_every(*given)
        return
    result = P.get_act_patch_attn_head_all_pos_every(*given, baseline=True)
    assert result.values[2].isnan().all()  # keys without rotary, of which all heads share a part
    close(result.values[1], P.get_act_patch_attn_head_q_all_pos(*given))
    close(result.values[4], P.get_act_patch_attn_head_pattern_all_pos(*given))
    assert {row[0] for row in result.grid.rows} == {0, 1, 3, 4}

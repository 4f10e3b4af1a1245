"""The steps of an introductory notebook through the TransformerLens layer, on the bundled model.

What they give is held against the bare HuggingFace model under PyTorch's hooks and against
formulas; `tests/peers/test_compat.py` holds the same calls against TransformerLens.
"""

from typing import Any

import pytest
import torch
from einops import einsum
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import lensbridge
import lensbridge.compat.transformer_lens as transformer_lens
from lensbridge.compat.transformer_lens import (
    ActivationCache,
    FactoredMatrix,
    HookedTransformer,
    patching,
    utils,
)
from lensbridge.compat.transformer_lens.hook_points import HookPoint
from lensbridge.errors import HookNeverFiredError, InputError, UnknownPointError, WeightError
from lensbridge.loading import demo_folder

TEXT = "The Eiffel Tower is in the city of"
CORRUPTED = "The Galata Tower is in the city of"


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def plain() -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing("demo", device="cpu")


@pytest.fixture(scope="module")
def bare() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_folder(), attn_implementation="eager")


@pytest.fixture(scope="module")
def ids() -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    return torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(TEXT)]])


def close(found: Tensor, wanted: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


# --- loading and running -------------------------------------------------------------------------


def test_the_processed_model_predicts_what_the_bare_one_does(
    model: HookedTransformer, bare: Any, ids: Tensor
) -> None:
    logits = model(TEXT)
    wanted = bare(ids).logits
    close(logits.log_softmax(-1), wanted.log_softmax(-1))
    close(logits, wanted - wanted.mean(-1, keepdim=True), atol=5e-4)
    assert model.cfg.normalization_type == "LNPre"


def test_the_unprocessed_model_is_the_bare_one(
    plain: HookedTransformer, bare: Any, ids: Tensor
) -> None:
    close(plain(ids), bare(ids).logits)
    assert torch.equal(plain.W_E, bare.transformer.wte.weight)


def test_losses(plain: HookedTransformer, bare: Any, ids: Tensor) -> None:
    wanted = bare(ids, labels=ids).loss
    close(plain(TEXT, return_type="loss"), wanted)
    per_token = plain(TEXT, return_type="loss", loss_per_token=True)
    assert per_token.shape == (1, ids.shape[1] - 1)
    close(per_token.mean(), wanted)
    close(plain.loss_fn(plain(ids), ids), wanted)


# --- caching -------------------------------------------------------------------------------------


def test_a_cache_by_every_spelling(plain: HookedTransformer, bare: Any, ids: Tensor) -> None:
    _, cache = plain.run_with_cache(ids, remove_batch_dim=True)
    known = bare(ids, output_attentions=True, output_hidden_states=True)
    for layer in range(plain.cfg.n_layers):
        close(cache["pattern", layer, "attn"], known.attentions[layer][0])
        close(cache[f"blocks.{layer}.hook_resid_pre"], known.hidden_states[layer][0])
        close(cache[utils.get_act_name("pattern", layer)], known.attentions[layer][0])
    close(cache["pattern", -1], known.attentions[-1][0])
    assert "blocks.0.ln1.hook_out" not in cache
    assert "unembed.hook_out" in cache
    close(cache["unembed.hook_out"], known.logits[0])


def test_the_default_cache_has_no_large_points_until_their_flag_is_set(
    plain: HookedTransformer, ids: Tensor
) -> None:
    _, cache = plain.run_with_cache(ids)
    assert "blocks.0.attn.hook_result" not in cache
    plain.set_use_attn_result(True)
    try:
        _, cache = plain.run_with_cache(ids)
    finally:
        plain.cfg.use_attn_result = False
    by_hand = einsum(
        cache["z", 1],
        plain.blocks[1].attn.W_O,
        "b p head d_head, head d_head d_model -> b p head d_model",
    )
    close(cache["result", 1], by_hand)
    _, named = plain.run_with_cache(ids, names_filter=["blocks.1.attn.hook_result"])
    close(named["result", 1], by_hand)


def test_filters(plain: HookedTransformer, ids: Tensor) -> None:
    _, cache = plain.run_with_cache(ids, names_filter=lambda name: name.endswith("pattern"))
    assert list(cache) == [f"blocks.{i}.attn.hook_pattern" for i in range(4)]
    _, cache = plain.run_with_cache(ids, names_filter="hook_embed", return_cache_object=False)
    assert type(cache) is dict
    assert list(cache) == ["hook_embed"]
    with pytest.raises(UnknownPointError, match="hook_pattern"):
        plain.run_with_cache(ids, names_filter=["blocks.0.attn.hook_patern"])
    with pytest.raises(HookNeverFiredError):
        plain.run_with_cache(ids, names_filter=["blocks.3.attn.hook_z"], stop_at_layer=2)


def test_gradients_in_a_cache(plain: HookedTransformer, bare: Any, ids: Tensor) -> None:
    _, cache = plain.run_with_cache(ids, return_type="loss", incl_bwd=True)
    resid = bare.transformer.wte(ids) + bare.transformer.wpe(torch.arange(ids.shape[1]))
    resid = resid.detach().requires_grad_()
    bare(inputs_embeds=resid - bare.transformer.wpe(torch.arange(ids.shape[1])), labels=ids)[
        "loss"
    ].backward()
    close(cache["blocks.0.hook_resid_pre_grad"], resid.grad)
    assert "unembed.hook_out_grad" in cache


# --- hooks ---------------------------------------------------------------------------------------


def silence(head: int) -> Any:
    def hook(z: Tensor, hook: HookPoint) -> Tensor:
        z[:, :, head] = 0.0
        return z

    return hook


def bare_without(bare: Any, ids: Tensor, layer: int, head: int) -> Tensor:
    """Logits of the bare model with one head's output at zero, by a PyTorch hook."""

    def before(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].clone()
        z[..., head * 32 : (head + 1) * 32] = 0.0
        return (z,)

    handle = bare.transformer.h[layer].attn.c_proj.register_forward_pre_hook(before)
    try:
        return bare(ids).logits
    finally:
        handle.remove()


def test_a_head_is_ablated(plain: HookedTransformer, bare: Any, ids: Tensor) -> None:
    wanted = bare_without(bare, ids, 1, 2)
    close(plain.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_z", silence(2))]), wanted)
    close(plain.run_with_hooks(ids, fwd_hooks=[(utils.get_act_name("z", 1), silence(2))]), wanted)
    by_filter = lambda name: name == "blocks.1.attn.hook_z"  # noqa: E731
    close(plain.run_with_hooks(ids, fwd_hooks=[(by_filter, silence(2))]), wanted)
    plain.blocks[1].attn.hook_z.add_hook(silence(2))
    try:
        close(plain(ids), wanted)
    finally:
        plain.reset_hooks()
    close(plain(ids), bare(ids).logits)


def test_hooks_know_where_they_are(plain: HookedTransformer) -> None:
    seen = []

    def note(value: Tensor, hook: HookPoint) -> None:
        hook.ctx["width"] = value.shape[-1]
        seen.append((hook.name, hook.layer()))

    plain.run_with_hooks(TEXT, fwd_hooks=[("blocks.2.hook_resid_mid", note)])
    assert seen == [("blocks.2.hook_resid_mid", 2)]
    point = plain.blocks[2].hook_resid_mid
    assert isinstance(point, HookPoint)
    assert point.ctx == {"width": 128}
    plain.reset_hooks()
    assert point.ctx == {}


def test_permanence_levels_and_order(plain: HookedTransformer) -> None:
    seen: list[str] = []

    def note(word: str) -> Any:
        return lambda value, hook: seen.append(word)

    plain.add_hook("hook_embed", note("second"))
    plain.add_hook("hook_embed", note("first"), prepend=True)
    plain.add_perma_hook("hook_embed", note("kept"))
    plain.add_hook("hook_embed", note("level"), level=3)
    plain(TEXT)
    assert seen == ["first", "second", "kept", "level"]
    plain.reset_hooks(level=3)
    seen.clear()
    plain(TEXT)
    assert seen == ["first", "second", "kept"]
    plain.reset_hooks()
    seen.clear()
    plain(TEXT)
    assert seen == ["kept"]
    plain.reset_hooks(including_permanent=True)
    assert not plain.hook_dict["hook_embed"].has_hooks()
    assert plain.lens.engine.is_idle


def test_hooks_that_are_left_on(plain: HookedTransformer, bare: Any, ids: Tensor) -> None:
    pairs = [("blocks.1.attn.hook_z", silence(0))]
    plain.run_with_hooks(ids, fwd_hooks=pairs, reset_hooks_end=False)
    close(plain(ids), bare_without(bare, ids, 1, 0))
    plain.reset_hooks()
    close(plain(ids), bare(ids).logits)


def test_caches_filled_by_hooks(plain: HookedTransformer, ids: Tensor) -> None:
    _, wanted = plain.run_with_cache(ids)
    cache = plain.cache_some({}, lambda name: name.endswith("hook_z"))
    plain(ids)
    plain.reset_hooks()
    made = ActivationCache(cache, plain)
    assert len(made) == 4
    assert torch.equal(made["z", 3], wanted["z", 3])
    made.remove_batch_dim()
    assert made["z", 3].shape == wanted["z", 3].shape[1:]


# --- patching ------------------------------------------------------------------------------------


def test_the_residual_stream_is_patched_position_by_position(plain: HookedTransformer) -> None:
    clean, corrupted = plain.to_tokens(TEXT), plain.to_tokens(CORRUPTED)
    _, clean_cache = plain.run_with_cache(clean)
    paris, istanbul = plain.to_single_token(" Paris"), plain.to_single_token(" Istanbul")

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, paris] - logits[0, -1, istanbul]

    def patch(resid: Tensor, hook: HookPoint, pos: int) -> Tensor:
        resid[:, pos] = clean_cache[hook.name][:, pos]
        return resid

    grid = patching.get_act_patch_resid_pre(plain, corrupted, clean_cache, metric)
    by_hand = torch.zeros(4, clean.shape[1])
    for layer in range(4):
        for pos in range(clean.shape[1]):
            logits = plain.run_with_hooks(
                corrupted,
                fwd_hooks=[
                    (
                        utils.get_act_name("resid_pre", layer),
                        lambda resid, hook, pos=pos: patch(resid, hook, pos),
                    )
                ],
            )
            by_hand[layer, pos] = metric(logits)
    close(torch.as_tensor(grid), by_hand, atol=1e-3)
    best = by_hand[0].argmax().item()
    assert clean[0, best] != corrupted[0, best]


# --- weights and circuits ------------------------------------------------------------------------


def test_weights_are_ordinary_tensors(plain: HookedTransformer, bare: Any) -> None:
    assert type(plain.W_Q) is Tensor
    assert plain.W_Q.shape == (4, 4, 128, 32)
    c_attn = bare.transformer.h[2].attn.c_attn.weight
    assert torch.equal(plain.W_V[2, 1], c_attn[:, 256 + 32 : 256 + 64])
    assert torch.equal(plain.W_E_pos[564:], bare.transformer.wpe.weight)
    names = dict(plain.named_parameters())
    assert torch.equal(names["blocks.2.attn.W_V"][1], plain.W_V[2, 1])
    assert sum(p.numel() for p in plain.parameters()) == bare.num_parameters()


def test_factored_matrices(plain: HookedTransformer) -> None:
    ov = plain.W_V[1, 3].double() @ plain.W_O[1, 3].double()
    assert isinstance(plain.OV, FactoredMatrix)
    close(plain.OV[1, 3].AB.double(), ov)
    values = torch.linalg.eigvals(ov)
    largest = values.abs().sort(descending=True).values[:32]
    found = plain.OV[1, 3].eigenvalues.abs().sort(descending=True).values
    close(found.double(), largest, atol=1e-3)
    one, two = plain.W_Q[0, 0] @ plain.W_K[0, 0].T, plain.OV[0, 1].AB
    score = (two @ one).norm() / (two.norm() * one.norm())
    mine = utils.composition_scores(plain.OV[0, 1], plain.QK[0, 0])
    close(torch.as_tensor(mine), score)


def test_writing_to_a_weight_edits_the_model() -> None:
    model = HookedTransformer.from_pretrained_no_processing("demo", device="cpu")
    without = model.run_with_hooks(TEXT, fwd_hooks=[("blocks.1.attn.hook_z", silence(2))])
    weight = model.blocks[1].attn.W_O.detach().clone()
    weight[2] = 0
    model.blocks[1].attn.W_O = weight
    close(model(TEXT), without)
    with pytest.raises(WeightError, match="shape"):
        model.blocks[1].attn.W_O = weight[0]
    with pytest.raises(WeightError, match="W_Q"):
        _ = model.blocks[1].attn.W_q


def test_a_state_goes_there_and_back(plain: HookedTransformer, ids: Tensor) -> None:
    other = HookedTransformer.from_pretrained_no_processing("demo", device="cpu")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    assert not torch.allclose(other(ids), plain(ids), atol=1e-2)
    other.load_state_dict(plain.state_dict())
    close(other(ids), plain(ids))
    state = plain.state_dict()
    state["unembed.W_U"] = state["unembed.W_U"] + 1
    with pytest.raises(WeightError, match="tied"):
        other.load_state_dict(state)
    with pytest.raises(WeightError, match="missing"):
        other.load_state_dict({"embed.W_E": state["embed.W_E"]})


# --- texts and generation ------------------------------------------------------------------------


def test_texts(plain: HookedTransformer, ids: Tensor) -> None:
    assert torch.equal(plain.to_tokens(TEXT), ids)
    assert plain.to_string(ids[0]) == "<|endoftext|>" + TEXT
    assert plain.to_str_tokens(TEXT, prepend_bos=False)[-1] == " of"
    assert plain.get_token_position(" Tower", TEXT) == 3
    with utils.LocallyOverridenDefaults(plain, prepend_bos=False, padding_side="left"):
        assert torch.equal(plain.to_tokens(TEXT), ids[:, 1:])
        assert plain.to_tokens([TEXT, "The"])[1, 0] == plain.tokenizer.pad_token_id
    assert torch.equal(plain.to_tokens(TEXT), ids)


def test_ids_padded_on_the_left_give_what_each_row_gives_alone(plain: HookedTransformer) -> None:
    with utils.LocallyOverridenDefaults(plain, padding_side="left"):
        rows = plain.to_tokens([TEXT, "The Eiffel"])
        close(plain(rows)[1, -1], plain("The Eiffel")[0, -1])


def test_generation(plain: HookedTransformer, bare: Any, ids: Tensor) -> None:
    text = plain.generate(TEXT, max_new_tokens=1, do_sample=False, verbose=False)
    assert text == TEXT + " Paris"
    found = plain.generate(ids, max_new_tokens=3, do_sample=False, verbose=False)
    wanted = bare.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    assert torch.equal(found, wanted)


# --- parts ---------------------------------------------------------------------------------------


def test_starting_late_and_stopping_early(plain: HookedTransformer, ids: Tensor) -> None:
    _, cache = plain.run_with_cache(ids)
    close(plain(ids, stop_at_layer=2), cache["resid_pre", 2])
    close(plain(cache["resid_pre", 2], start_at_layer=2), plain(ids))
    resid, tokens, _, mask = plain.input_to_embed(TEXT)
    close(resid, cache["resid_pre", 0])
    assert torch.equal(tokens, ids)
    assert mask is None


def test_parts_run_alone(plain: HookedTransformer, ids: Tensor) -> None:
    _, cache = plain.run_with_cache(ids)
    close(plain.blocks[1](cache["resid_pre", 1]), cache["resid_post", 1])
    close(plain.blocks[1].mlp(plain.blocks[1].ln2(cache["resid_mid", 1])), cache["mlp_out", 1])
    close(plain.unembed(plain.ln_final(cache["resid_post", -1])), plain(ids))
    close(plain.embed(ids) + plain.pos_embed(ids), cache["resid_pre", 0])
    normed = plain.blocks[1].ln1(cache["resid_pre", 1])
    close(plain.blocks[1].attn(normed), cache["attn_out", 1])


def test_what_is_refused(plain: HookedTransformer, ids: Tensor) -> None:
    with pytest.raises(InputError, match="past_key_values"):
        plain(ids, past_kv_cache=DynamicCache())
    with pytest.raises(InputError, match="dataset"):
        plain.sample_datapoint()
    plain.dataset = [{"text": TEXT}]
    assert plain.sample_datapoint() == TEXT
    assert torch.equal(plain.sample_datapoint(tokenize=True), ids)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = plain.no_such_thing


# --- other classes -------------------------------------------------------------------------------


def test_a_bridge_goes_over_to_processed_weights(bare: Any, ids: Tensor) -> None:
    bridge = transformer_lens.TransformerBridge.boot_transformers("demo", hf_model=bare)
    assert bridge.original_model is bare
    before = bare.transformer.wte.weight.clone()
    close(bridge(ids), bare(ids).logits)
    bridge.enable_compatibility_mode()
    assert bridge.cfg.normalization_type == "LNPre"
    close(bridge(ids).log_softmax(-1), bare(ids).logits.log_softmax(-1))
    assert torch.equal(bare.transformer.wte.weight, before)
    assert bridge.original_model is not bare


def test_functions_of_lensbridge_take_these_models(plain: HookedTransformer) -> None:
    scores = transformer_lens.head_detector.detect_head(plain, TEXT, "previous_token_head")
    assert scores.shape == (4, 4)
    wanted = lensbridge.analysis.detect_head(plain.lens, TEXT, "previous_token_head")
    assert torch.equal(scores, wanted)
    vectors = transformer_lens.SVDInterpreter(plain).get_singular_vectors("OV", 1, 2, 3)
    _, _, right = torch.linalg.svd(plain.OV[1, 3].AB.detach())
    close(vectors[:, 0, 0].abs(), (right[0] @ plain.W_U.detach()).abs(), atol=1e-3)

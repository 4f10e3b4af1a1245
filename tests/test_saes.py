"""SAEs on a model against the bare model under plain PyTorch hooks, and against autograd."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from raw import record, run_replacing
from saes import Plain, Showing, Skipping, Told
from tiny_models import Layer, Shape, build, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import (
    AbsentPointError,
    EditError,
    HookError,
    HookNeverFiredError,
    InputError,
    TokenizerMissingError,
    UnknownPointError,
)

FAMILIES = ("gpt2", "llama", "neox")
PRE = "blocks.1.hook_resid_pre"
ACTS = f"{PRE}.hook_sae_acts_post"


def loaded(family: str = "gpt2", **shape: Any) -> tuple[Any, nn.Module, Shape]:
    form = Shape(family, **shape)
    hf = build(form)
    return lensbridge.load(hf), hf, form


def hooks_on(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def native(hf: nn.Module, family: str, point: str) -> tuple[nn.Module, str]:
    """Where a point of layer 1 is, written out by hand."""
    layer = Layer(hf, family, 1)
    return {
        "hook_resid_pre": (layer.block, "input"),
        "hook_resid_post": (layer.block, "output"),
        "hook_mlp_out": (layer.down, "output"),
        "hook_attn_out": (layer.o, "output"),
        "mlp.hook_post": (layer.down, "input"),
        "attn.hook_z": (layer.o, "input"),
    }[point]


def recorded(hf: nn.Module, family: str, point: str, ids: Tensor) -> tuple[Tensor, Any]:
    module, side = native(hf, family, point)
    recording = record(hf, input_ids=ids)
    return getattr(recording, f"{side}s")[module], recording


POINTS = (
    "hook_resid_pre",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "mlp.hook_post",
    "attn.hook_z",
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("point", POINTS)
def test_what_the_sae_makes_goes_on_in_the_point_s_place(family: str, point: str) -> None:
    model, hf, _ = loaded(family)
    ids = tokens()
    with torch.no_grad():
        read, _ = recorded(hf, family, point, ids)
        sae = Plain(read.shape[-1])
        made = sae.decode(sae.encode(read))
        expected = run_replacing(hf, *native(hf, family, point), made, input_ids=ids)
        with model.spliced({f"blocks.1.{point}": sae}):
            logits, cache = model.run_with_cache(ids)
    at = f"blocks.1.{point}"
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(cache[f"{at}.hook_sae_input"], read)
    torch.testing.assert_close(cache[f"{at}.hook_sae_acts_post"], sae.encode(read))
    torch.testing.assert_close(cache[f"{at}.hook_sae_recons"], made)
    assert torch.equal(cache[f"{at}.hook_sae_output"], cache[at])
    torch.testing.assert_close(cache[at].reshape(made.shape), made)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("point", POINTS)
def test_with_the_error_term_and_no_edit_nothing_changes(
    family: str, dtype: torch.dtype, point: str
) -> None:
    model, hf, _ = loaded(family, dtype=dtype)
    ids = tokens()
    read, recording = recorded(hf, family, point, ids)
    sae = Plain(read.shape[-1])
    at = f"blocks.1.{point}"
    with model.spliced({at: sae}, use_error_term=True):
        assert torch.equal(model(ids), recording.logits)
        same = [(f"{at}.hook_sae_*", lambda value, hook: value)]
        assert torch.equal(model.run_with_hooks(ids, fwd_hooks=same), recording.logits)
        _, cache = model.run_with_cache(ids)
    wide = read.float()
    missed = wide - sae.decode(sae.encode(wide))
    torch.testing.assert_close(cache[f"{at}.hook_sae_error"].reshape(missed.shape), missed)
    assert cache[f"{at}.hook_sae_output"].dtype == dtype
    assert cache[f"{at}.hook_sae_acts_post"].dtype == torch.float32


def edited_by_hand(
    hf: nn.Module, ids: Tensor, sae: Plain, edit: Callable[[Tensor], Tensor], error: bool
) -> Tensor:
    read, _ = recorded(hf, "gpt2", "hook_resid_pre", ids)
    made = sae.decode(edit(sae.encode(read)))
    made = made + (read - sae.decode(sae.encode(read))) if error else made
    return run_replacing(hf, *native(hf, "gpt2", "hook_resid_pre"), made, input_ids=ids)


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_feature_can_be_ablated(error: bool, in_place: bool) -> None:
    model, hf, shape = loaded(dtype=torch.float64)
    ids, sae = tokens(), Plain(shape.d_model, dtype=torch.float64)

    def without(acts: Tensor) -> Tensor:
        keep = torch.ones_like(acts)
        keep[..., 3] = 0
        return acts * keep

    def ablate(acts: Tensor, hook: Any) -> Tensor | None:
        if not in_place:
            return without(acts)
        acts[..., 3] = 0
        return None

    expected = edited_by_hand(hf, ids, sae, without, error)
    with model.spliced({PRE: sae}, use_error_term=error):
        logits = model.run_with_hooks(ids, fwd_hooks=[(ACTS, ablate)])
        torch.testing.assert_close(logits, expected)
        assert not torch.allclose(logits, model(ids))


def test_every_point_of_an_sae_can_be_edited() -> None:
    model, hf, shape = loaded(dtype=torch.float64)
    ids, sae = tokens(), Showing(shape.d_model).double()
    read, _ = recorded(hf, "gpt2", "hook_resid_pre", ids)
    last = torch.nn.functional.relu
    by_hand = {
        "input": lambda: 2 * sae.dec(last(sae.enc(read + 1))),
        "acts_pre": lambda: 2 * sae.dec(last(sae.enc(read) + 1)),
        "acts_post": lambda: 2 * sae.dec(last(sae.enc(read)) + 1),
        "recons": lambda: 2 * (sae.dec(last(sae.enc(read))) + 1),
        "output": lambda: 2 * sae.dec(last(sae.enc(read))) + 1,
        "error": lambda: 2 * sae.dec(last(sae.enc(read))) + 1,
    }
    missed = read - 2 * sae.dec(last(sae.enc(read)))
    for part, made in by_hand.items():
        expected = run_replacing(
            hf, *native(hf, "gpt2", "hook_resid_pre"), made() + missed, input_ids=ids
        )
        with model.spliced({PRE: sae}, use_error_term=True):
            edit = [(f"{PRE}.hook_sae_{part}", lambda value, hook: value + 1)]
            torch.testing.assert_close(model.run_with_hooks(ids, fwd_hooks=edit), expected)


def test_without_its_error_the_reconstruction_goes_on() -> None:
    model, _, shape = loaded(dtype=torch.float64)
    ids, sae = tokens(), Plain(shape.d_model, dtype=torch.float64)
    with model.spliced({PRE: sae}):
        expected = model(ids)
    drop = [(f"{PRE}.hook_sae_error", lambda value, hook: torch.zeros_like(value))]
    with model.spliced({PRE: sae}, use_error_term=True):
        torch.testing.assert_close(model.run_with_hooks(ids, fwd_hooks=drop), expected)


@pytest.mark.parametrize("error", [False, True])
def test_gradients_are_those_of_autograd(error: bool) -> None:
    model, hf, shape = loaded(dtype=torch.float64)
    ids, sae = tokens(), Plain(shape.d_model, dtype=torch.float64)
    found: dict[str, Tensor] = {}

    def by_hand(_: nn.Module, args: Any, kwargs: Any) -> Any:
        read = args[0] if args else kwargs["hidden_states"]
        acts = sae.encode(read)
        made = sae.decode(acts)
        missed = (read - made).detach().requires_grad_()
        found.update(read=read, acts=acts, missed=missed)
        out = made + missed if error else made
        return ((out, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": out})

    handle = Layer(hf, "gpt2", 1).block.register_forward_pre_hook(by_hand, with_kwargs=True)
    logits = hf(input_ids=ids).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    wanted = ["read", "acts", *(["missed"] if error else [])]
    grads = dict(
        zip(wanted, torch.autograd.grad(loss, [found[one] for one in wanted]), strict=True)
    )
    handle.remove()

    seen: list[Tensor] = []
    with model.spliced({PRE: sae}, use_error_term=error):
        _, cache = model.run_with_cache(ids, incl_bwd=True, return_type="loss")
        out = model.run_with_hooks(
            ids, bwd_hooks=[(ACTS, lambda grad, hook: seen.append(grad))], return_type="loss"
        )
    out.backward()
    torch.testing.assert_close(cache[f"{ACTS}_grad"], grads["acts"])
    torch.testing.assert_close(seen[0], grads["acts"])
    torch.testing.assert_close(cache["blocks.0.hook_resid_post_grad"], grads["read"])
    if error:
        torch.testing.assert_close(cache[f"{PRE}.hook_sae_error_grad"], grads["missed"])
        assert torch.equal(
            cache[f"{PRE}.hook_sae_error_grad"], cache[f"{PRE}.hook_sae_output_grad"]
        )


def test_gradients_reach_the_weights_of_an_sae() -> None:
    model, _, shape = loaded()
    sae = Showing(shape.d_model)
    with model.spliced({PRE: sae}):
        model(tokens(), return_type="loss").backward()
    assert sae.enc.weight.grad is not None
    assert sae.enc.weight.grad.abs().sum() > 0


# --- heads, widths, transcoders ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_sae_of_one_head_replaces_that_head(family: str) -> None:
    model, hf, shape = loaded(family)
    ids = tokens()
    sae = Told("blocks.1.attn.hook_z", shape.d_head, hook_head_index=2)
    with torch.no_grad():
        read, _ = recorded(hf, family, "attn.hook_z", ids)
        heads = read.unflatten(-1, (shape.heads, shape.d_head)).clone()
        heads[:, :, 2] = sae.decode(sae.encode(heads[:, :, 2]))
        where = native(hf, family, "attn.hook_z")
        expected = run_replacing(hf, *where, heads.flatten(2), input_ids=ids)
        with model.spliced(sae):
            torch.testing.assert_close(model(ids), expected)
        with model.spliced(sae, use_error_term=True):
            assert torch.equal(model(ids), hf(ids).logits)


def test_an_sae_as_wide_as_a_head_is_applied_to_each() -> None:
    model, hf, shape = loaded()
    ids, sae = tokens(), Plain(shape.d_head)
    with torch.no_grad():
        read, _ = recorded(hf, "gpt2", "attn.hook_z", ids)
        heads = read.unflatten(-1, (shape.heads, shape.d_head))
        made = sae.decode(sae.encode(heads)).flatten(2)
        where = native(hf, "gpt2", "attn.hook_z")
        with model.spliced({"blocks.1.attn.hook_z": sae}):
            torch.testing.assert_close(model(ids), run_replacing(hf, *where, made, input_ids=ids))


def transcoders(shape: Shape) -> list[Any]:
    ends = "blocks.1.ln2.hook_out", "blocks.1.mlp.hook_post"
    told = Told(ends[0], shape.d_model, shape.d_mlp, hook_name_out=ends[1])
    return [
        told,
        {ends: Plain(shape.d_model, shape.d_mlp)},
        {ends: Skipping(shape.d_model, shape.d_mlp)},
    ]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_transcoder_reads_at_one_point_and_replaces_another(which: int) -> None:
    model, hf, shape = loaded()
    ids, asked = tokens(), transcoders(shape)[which]
    sae = asked if which == 0 else next(iter(asked.values()))
    layer = Layer(hf, "gpt2", 1)
    with torch.no_grad():
        recording = record(hf, input_ids=ids)

        def made(read: Tensor) -> Tensor:
            decoded = sae.decode(sae.encode(read))
            return decoded + read @ sae.W_skip.T if which == 2 else decoded

        read = recording.outputs[layer.ln2]
        expected = run_replacing(hf, layer.down, "input", made(read), input_ids=ids)
        with model.spliced(asked):
            logits, cache = model.run_with_cache(ids)
            # an edit of what it reads reaches it, also one that was asked for later
            more = [("blocks.1.ln2.hook_out", lambda value, hook: value + 1)]
            edited = model.run_with_hooks(ids, fwd_hooks=more)
        torch.testing.assert_close(logits, expected)
        after = run_replacing(hf, layer.down, "input", made(read + 1), input_ids=ids)
        torch.testing.assert_close(edited, after)
        with model.spliced(asked, use_error_term=True):
            assert torch.equal(model(ids), recording.logits)
    acts = cache["blocks.1.mlp.hook_post.hook_sae_acts_post"]
    torch.testing.assert_close(acts, sae.encode(read))
    assert cache["blocks.1.mlp.hook_post.hook_sae_input"].shape[-1] == shape.d_model


def test_a_transcoder_reads_what_is_edited_in_place_at_the_shared_residual() -> None:
    model, _hf, shape = loaded()
    ids, sae = tokens(), Plain(shape.d_model)
    ends = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"
    with torch.no_grad():
        _, clean = model.run_with_cache(ids)
        mid = clean["blocks.1.hook_resid_mid"] + 1
        with model.spliced({ends: sae}):
            _, cache = model.run_with_cache(
                ids, names_filter=[f"{ends[1]}.hook_sae_*", "blocks.1.hook_resid_post"]
            )
            add = [("blocks.1.hook_resid_mid", lambda value, hook: value + 1)]
            with model.hooks(add):
                _, cache = model.run_with_cache(ids)
    torch.testing.assert_close(cache[f"{ends[1]}.hook_sae_acts_post"], sae.encode(mid))
    torch.testing.assert_close(cache["blocks.1.hook_resid_post"], mid + sae.decode(sae.encode(mid)))


# --- several, and for how long -------------------------------------------------------------------


def test_saes_at_several_points_act_in_order_and_contexts_nest() -> None:
    model, _, shape = loaded(layers=3)
    ids = tokens()
    saes = [Told(f"blocks.{i}.hook_resid_pre", shape.d_model) for i in (0, 2)]
    by_edits = [
        (sae.cfg.metadata.hook_name, lambda v, hook, sae=sae: sae.decode(sae.encode(v)))
        for sae in saes
    ]
    expected = model.run_with_hooks(ids, fwd_hooks=by_edits)
    assert torch.equal(model.run_with_saes(ids, saes=saes), expected)
    with model.spliced(saes[0]), model.spliced(saes[1]):
        assert torch.equal(model(ids), expected)
        assert len([name for name in model.hook_names if "hook_sae" in name]) == 8
    assert not [name for name in model.hook_names if "hook_sae" in name]


def test_hooks_outside_change_what_the_sae_reads_and_hooks_inside_what_it_made() -> None:
    model, _, shape = loaded()
    ids, sae = tokens(), Plain(shape.d_model)
    plus = [(PRE, lambda value, hook: value + 1)]
    with model.hooks(plus), model.spliced({PRE: sae}):
        _, outside = model.run_with_cache(ids)
    with model.spliced({PRE: sae}), model.hooks(plus):
        _, inside = model.run_with_cache(ids)
    read = outside["blocks.0.hook_resid_post"]
    made = sae.decode(sae.encode(read + 1))
    torch.testing.assert_close(outside[PRE], made)
    torch.testing.assert_close(inside[PRE], sae.decode(sae.encode(read)) + 1)


def test_an_attached_sae_stays_until_it_is_reset_and_gives_way_for_one_run() -> None:
    model, hf, shape = loaded()
    ids, base = tokens(), model(tokens())
    first, other = Told(PRE, shape.d_model), Told(PRE, shape.d_model)
    other.W_dec = -other.W_dec
    model.add_sae(first)
    with_first = model(ids)
    model.reset_hooks()
    assert torch.equal(model(ids), with_first)
    assert model.acts_to_saes == {PRE: first}
    with_other = model.run_with_saes(ids, saes=[other])
    assert not torch.equal(with_other, with_first)
    assert torch.equal(model(ids), with_first)
    model.add_sae(other)
    assert model.acts_to_saes == {PRE: other}
    assert torch.equal(model(ids), with_other)
    _, cache = model.run_with_cache(ids)
    assert ACTS in cache
    model.reset_saes(PRE)
    assert torch.equal(model(ids), base)
    assert model.acts_to_saes == {}
    model.run_with_saes(ids, saes=first, reset_saes_end=False)
    assert torch.equal(model(ids), with_first)
    model.reset_saes()
    assert torch.equal(model(ids), base)
    assert hooks_on(hf) == 0


def test_an_sae_s_own_choice_of_the_error_term_counts() -> None:
    model, _, shape = loaded()
    ids, sae = tokens(), Told(PRE, shape.d_model)
    base = model(ids)
    sae.use_error_term = True
    assert torch.equal(model.run_with_saes(ids, saes=sae), base)
    assert not torch.equal(model.run_with_saes(ids, saes=sae, use_error_term=False), base)
    logits, cache = model.run_with_cache_with_saes(ids, saes=[sae])
    assert torch.equal(logits, base)
    assert f"{PRE}.hook_sae_error" in cache
    stopped = model.run_with_hooks_with_saes(
        ids, saes=[sae], fwd_hooks=[(ACTS, lambda acts, hook: 0 * acts)]
    )
    assert not torch.equal(stopped, base)


def test_a_hook_on_a_feature_stays_for_the_next_time() -> None:
    model, _, shape = loaded()
    ids, sae, seen = tokens(), Plain(shape.d_model), []
    with model.spliced({PRE: sae}):
        model.add_hook(ACTS, lambda acts, hook: seen.append(hook.name))
        model(ids)
    model(ids)
    with model.spliced({PRE: sae}):
        model(ids)
    assert seen == [ACTS, ACTS]


def test_nothing_is_left_after_an_error() -> None:
    model, hf, shape = loaded()
    ids, base, sae = tokens(), model(tokens()), Showing(shape.d_model)

    def fail(value: Tensor, hook: Any) -> None:
        raise RuntimeError("stop here")

    for part in ("acts_pre", "output"):
        with pytest.raises(RuntimeError, match="stop here"):
            model.run_with_hooks_with_saes(
                ids, saes={PRE: sae}, fwd_hooks=[(f"{PRE}.hook_sae_{part}", fail)]
            )
    with pytest.raises(ValueError, match="mine"), model.spliced({PRE: sae}):
        raise ValueError("mine")
    assert hooks_on(hf) == 0
    assert hooks_on(sae) == 0
    assert torch.equal(model(ids), base)


def test_threads_have_their_own_saes() -> None:
    model, _, shape = loaded()
    ids, width = tokens(), shape.d_model
    shared = Showing(width)
    with torch.no_grad():
        base = model(ids)
        alone = model.run_with_saes(ids, saes={PRE: shared})
    barrier, wrong = threading.Barrier(3), []

    def work(saes: dict[str, Any], expected: Tensor, names: int) -> None:
        barrier.wait()
        with torch.no_grad():
            for _ in range(15):
                with model.spliced(saes):
                    logits, cache = model.run_with_cache(ids)
                found = sum("hook_sae" in name for name in cache)
                if not torch.equal(logits, expected) or found != names:
                    wrong.append(found)

    plans = [({PRE: shared}, alone, 5), ({PRE: shared}, alone, 5), ({}, base, 0)]
    threads = [threading.Thread(target=work, args=plan) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- tokens, generation --------------------------------------------------------------------------


def test_the_model_s_own_value_goes_on_at_excluded_tokens() -> None:
    model, hf, shape = loaded()
    ids, sae = tokens(), Plain(shape.d_model)
    left = [int(ids[0, 2]), int(ids[1, 4])]
    with torch.no_grad():
        read, _ = recorded(hf, "gpt2", "hook_resid_pre", ids)
        mask = torch.isin(ids, torch.tensor(left))[..., None]
        made = torch.where(mask, read, sae.decode(sae.encode(read)))
        where = native(hf, "gpt2", "hook_resid_pre")
        expected = run_replacing(hf, *where, made, input_ids=ids)
        asked = {"saes": {PRE: sae}, "exclude_special_tokens": left}
        logits, cache = model.run_with_cache_with_saes(ids, use_error_term=True, **asked)
        torch.testing.assert_close(model.run_with_saes(ids, **asked), expected)
    assert torch.equal(logits, model(ids))
    assert (cache[f"{PRE}.hook_sae_error"].eq(0).all(-1) == mask[..., 0]).all()
    with pytest.raises(InputError, match="needs a token"):
        model.run_with_saes(hf.get_input_embeddings()(ids), **asked)
    with pytest.raises(TokenizerMissingError):
        model.run_with_saes(ids, saes={PRE: sae}, exclude_special_tokens=True)


def test_generation_goes_through_the_sae() -> None:
    model, _hf, shape = loaded()
    ids, sae = tokens(1), Plain(shape.d_model)
    steps: list[int] = []
    with model.spliced({PRE: sae}):
        with model.hooks([(ACTS, lambda acts, hook: steps.append(acts.shape[1]))]):
            generated = model.generate(ids, max_new_tokens=3, do_sample=False)
        grown = ids
        for _ in range(3):
            grown = torch.cat([grown, model(grown)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated[:, : grown.shape[1]], grown)
    assert steps == [7, 1, 1]


# --- what is refused, and what is said -----------------------------------------------------------


def test_what_does_not_fit_is_refused_before_the_run() -> None:
    model, hf, shape = loaded()
    ran: list[int] = []
    handle = hf.register_forward_pre_hook(lambda *_: ran.append(1))
    width = shape.d_model
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({PRE: Plain(width + 1)}, EditError, f"is \\[{width}\\] wide"),
        ({PRE: Plain(width, width + 1)}, EditError, "gives"),
        ({"blocks.1.attn.hook_z": Plain(width + 1)}, EditError, "Tried on"),
        ({"blocks.1.hook_resid_pree": Plain(width)}, UnknownPointError, "Did you mean"),
        ({"blocks.9.hook_resid_pre": Plain(width)}, UnknownPointError, "layer 9"),
        ({f"{PRE}.hook_sae_acts_post": Plain(width)}, AbsentPointError, "spliced in"),
        ([Told(PRE, width), Told("blocks.1.hook_in", width)], HookError, "two SAEs"),
        (Plain(width), HookError, "names no point"),
        ({PRE: object()}, HookError, "encode and decode"),
        ({PRE: Plain}, HookError, "the class Plain"),
        (Told(PRE, width, hook_head_index=0), HookError, "no axis of heads"),
        (Told("blocks.1.attn.hook_z", shape.d_head, hook_head_index=9), HookError, "4 heads"),
        ({("blocks.1.hook_mlp_out", PRE): Plain(width)}, HookError, "comes before"),
    ]
    for saes, error, says in wrong:
        with pytest.raises(error, match=says), model.spliced(saes):
            pytest.fail("it was accepted")
        with pytest.raises(error, match=says):
            model.run_with_saes(tokens(), saes=saes)
    assert not ran
    handle.remove()
    assert hooks_on(hf) == 0


def test_a_width_that_only_a_run_can_tell_is_checked_there() -> None:
    model, hf, _ = loaded()
    with pytest.raises(EditError, match="61"), model.spliced({"hook_logits": Plain(7)}):
        model(tokens())
    assert hooks_on(hf) == 0
    sae = Plain(61)
    with model.spliced({"hook_logits": sae}):
        logits = model(tokens())
    base = model(tokens())
    torch.testing.assert_close(logits, sae.decode(sae.encode(base)))


def test_one_point_has_room_for_one() -> None:
    model, _, shape = loaded()
    sae = Told(PRE, shape.d_model)
    with model.spliced(sae):
        with pytest.raises(HookError, match="two SAEs"), model.spliced(sae):
            pytest.fail("it was accepted")
        assert ACTS in model.hook_names
    model.add_sae(sae)
    with pytest.raises(HookError, match="reset_saes"), model.spliced(sae):
        pytest.fail("it was accepted")
    model.reset_saes()
    with pytest.raises(HookError, match="No SAE is attached"):
        model.reset_saes(PRE)


def test_a_run_that_does_not_pass_the_point_is_an_error() -> None:
    model, _, shape = loaded()
    with (
        pytest.raises(HookNeverFiredError, match="resid_pre"),
        model.spliced(Told(PRE, shape.d_model)),
    ):
        model(tokens(), stop_at_layer=1)


def test_the_points_of_an_sae_have_names_like_all_others() -> None:
    model, _, shape = loaded()
    sae = Showing(shape.d_model)
    with pytest.raises(AbsentPointError, match="spliced in"):
        model.explain(ACTS)
    with model.spliced({("resid_pre", -1): sae}):
        assert "b p n" in str(model.explain("blocks.-1.hook_in.hook_sae_acts_post"))
        names = model.hook_names
        first = names.index(PRE)
        assert [name.rpartition("_sae_")[2] for name in names[first + 1 : first + 6]] == [
            "input",
            "acts_pre",
            "acts_post",
            "recons",
            "output",
        ]
        with pytest.raises(AbsentPointError, match="spliced in"):
            model.explain(f"{PRE}.hook_sae_error")
        with pytest.raises(UnknownPointError):
            model.explain("blocks.0.hook_nothing.hook_sae_input")
        _, cache = model.run_with_cache(tokens(1), names_filter="*.hook_sae_*")
    assert len(cache) == 5
    assert cache[f"{PRE}.hook_sae_acts_pre"].shape == (1, 7, 11)
    alone = cache.remove_batch_dim()
    assert alone["blocks.-1.hook_resid_pre.hook_sae_acts_post"].shape == (7, 11)


FAR = ("bert", "t5", "gemma2", "mixtral", "deepseek", "mamba")


@pytest.mark.parametrize("name", FAR)
def test_other_kinds_of_models(name: str) -> None:
    from lensbridge.conformance.tiny import tiny_model
    from lensbridge.inputs.random import inputs_for
    from lensbridge.plugins import registry

    described = [one.architecture for one in registry().claims if one.architecture.name == name]
    hf = tiny_model(described[0])
    model, given = lensbridge.load(hf), inputs_for(hf)
    wanted = ("hook_resid_pre", "hook_mlp_out", "hook_attn_out", "hook_mixer_out", "hook_z")
    points = [n for n in model.hook_names if n.endswith(wanted) and model.explain(n).editable]
    assert len(points) >= 2
    with torch.no_grad():
        base, cache = model.run_with_cache(given, names_filter=points)
        for point in points[:: max(1, len(points) // 3)]:
            sae = Plain(cache[point].shape[-1])
            made = [(point, lambda v, hook, sae=sae: sae.decode(sae.encode(v)))]
            expected = model.run_with_hooks(given, fwd_hooks=made)
            assert torch.equal(model.run_with_saes(given, saes={point: sae}), expected), point
            kept = model.run_with_saes(given, saes={point: sae}, use_error_term=True)
            assert torch.equal(kept, base), point

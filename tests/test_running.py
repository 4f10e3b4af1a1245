"""The run API: return types, losses, early stops, late starts, filters, contexts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from raw import record
from tiny_models import FAMILIES, Layer, Shape, build, shapes, tokens
from torch import Tensor

import lensbridge
from lensbridge.errors import AbsentPointError, InputError, LensbridgeError, NotCachedError


@given(shapes())
def test_logits_and_loss_are_the_bare_models(shape: Shape) -> None:
    hf, ids = build(shape), tokens()
    model = lensbridge.load(hf)
    bare = hf(ids, labels=ids)
    assert torch.equal(model(ids), bare.logits)
    torch.testing.assert_close(model(ids, return_type="loss"), bare.loss)
    both = model(ids, return_type="both")
    assert torch.equal(both.logits, bare.logits)
    torch.testing.assert_close(both[1], bare.loss)
    per_token = model(ids, return_type="loss", loss_per_token=True)
    expected = F.cross_entropy(bare.logits[:, :-1].mT, ids[:, 1:], reduction="none")
    torch.testing.assert_close(per_token, expected)


def test_labels_take_the_place_of_the_input() -> None:
    hf, ids = build(Shape("gpt2")), tokens()
    labels = ids.clone()
    labels[:, 3] = -100
    loss = lensbridge.load(hf)(ids, return_type="loss", labels=labels)
    torch.testing.assert_close(loss, hf(ids, labels=labels).loss)


def test_return_type_none_returns_nothing_and_does_not_run_the_head() -> None:
    hf = build(Shape("llama"))
    model = lensbridge.load(hf)
    ran = []
    handle = hf.lm_head.register_forward_hook(lambda *args: ran.append(args))
    assert model(tokens(), return_type=None) is None
    _, cache = model.run_with_cache(tokens(), names_filter="ln_final.hook_out", return_type=None)
    assert ran == []
    _, with_logits = model.run_with_cache(tokens(), names_filter="hook_logits", return_type=None)
    handle.remove()
    assert len(ran) == 1
    assert torch.equal(with_logits["logits"], model(tokens()))
    assert list(cache) == ["ln_final.hook_out"]


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_and_starting_skip_the_work(family: str) -> None:
    shape = Shape(family, layers=4)
    hf, ids = build(shape), tokens()
    model = lensbridge.load(hf)
    with torch.no_grad():
        recording = record(hf, input_ids=ids)
        model(recording.inputs[Layer(hf, family, 1).block], start_at_layer=1)
        # ...which ran layer 0 once, to see what layers of this class return
        ran: list[int] = []
        handles = [
            Layer(hf, family, i).mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
            for i in range(4)
        ]
        for stop in (0, 1, 3, -1, 4):
            ran.clear()
            residual = model(ids, stop_at_layer=stop)
            count = stop % 4 if stop != 4 else 4
            assert ran == list(range(count))
            if count < 4:
                assert torch.equal(residual, recording.inputs[Layer(hf, family, count).block])
            else:
                assert torch.equal(residual, recording.outputs[Layer(hf, family, 3).block])
            if count:
                ran.clear()
                assert torch.equal(model(residual, start_at_layer=count), recording.logits)
                assert ran == list(range(count, 4))
        ran.clear()
        residual = model(ids, stop_at_layer=1)
        middle = model(residual, start_at_layer=1, stop_at_layer=3)
        assert ran == [0, 1, 2]
        assert torch.equal(middle, recording.inputs[Layer(hf, family, 3).block])
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_late_start_caches_only_what_it_runs_and_passes_gradients(family: str) -> None:
    model = lensbridge.load(build(Shape(family, layers=3)))
    ids = tokens()
    residual = model(ids, stop_at_layer=1).detach().requires_grad_()
    logits, cache = model.run_with_cache(residual, start_at_layer=1)
    assert "blocks.0.hook_resid_pre" not in cache
    assert "hook_embed" not in cache
    assert torch.equal(cache["resid_pre", 1], residual)
    grad = torch.autograd.grad(logits.square().sum(), residual)[0]
    kept = {}

    def keep(value: Tensor, hook) -> None:
        value.retain_grad()
        kept["resid"] = value

    model.run_with_hooks(ids, fwd_hooks=[(("resid_pre", 1), keep)]).square().sum().backward()
    torch.testing.assert_close(grad, kept["resid"].grad)
    assert cache.tokens is None


def test_the_left_padded_late_start_takes_the_mask() -> None:
    model = lensbridge.load(build(Shape("llama", layers=3)))
    ids = tokens(3, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids, attention_mask=mask)
        late = model(cache["resid_pre", 2], start_at_layer=2, attention_mask=mask)
    assert torch.equal(late, logits)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"stop_at_layer": 3}, "stop_at_layer=3: this model has 2 layers"),
        ({"start_at_layer": -3}, "start_at_layer=-3"),
        ({"start_at_layer": 1, "stop_at_layer": 1}, "leaves nothing"),
        ({"start_at_layer": 1}, "needs a residual"),
        ({"return_type": "logit"}, "'logits', 'loss', 'both' or None"),
    ],
)
def test_spans_and_return_types_that_cannot_be(call: dict, words: str) -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(InputError, match=words):
        model(tokens(), **call)


def test_filters_of_every_kind() -> None:
    model = lensbridge.load(build(Shape("gpt2")))

    def kept(names_filter) -> list[str]:
        return list(model.run_with_cache(tokens(), names_filter=names_filter)[1])

    both = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert kept("resid_post") == both
    assert kept("blocks.*.hook_resid_post") == both
    assert kept(lambda name: "resid_post" in name) == both
    assert kept(both) == both
    assert kept(both[::-1]) == both
    assert kept(("resid_post", -1)) == both[1:]
    assert kept([("resid_post", 0), "blocks.1.hook_resid_post"]) == both
    assert kept("blocks.0.hook_out") == both[:1]
    assert kept("resid_post1") == both[1:]
    assert kept(("scale", 1, "ln1")) == ["blocks.1.ln1.hook_scale"]
    assert kept([]) == []
    assert kept(["blocks.0.attn.*", "hook_embed"]) == [
        "hook_embed",
        *(f"blocks.0.attn.hook_{x}" for x in ("q", "k", "v", "attn_scores", "pattern", "z")),
    ]


def test_cache_spellings_and_what_it_knows() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ids = tokens()
    _, cache = model.run_with_cache(ids)
    same = cache["blocks.1.attn.hook_pattern"]
    for spelling in [
        ("pattern", 1),
        ("pattern", -1),
        ("attn", 1),
        ("pattern", 1, "attn"),
        "blocks.1.attn.hook_attn",
        "blocks.-1.attn.hook_pattern",
        "pattern1",
    ]:
        assert cache[spelling] is same, spelling
        assert spelling in cache
    assert cache["embed"] is cache["hook_embed"]
    assert cache["scale"] is cache["ln_final.hook_scale"]
    assert cache["resid_post", 0].data_ptr() == cache["resid_pre", 1].data_ptr()
    assert torch.equal(cache.tokens, ids)
    assert cache.model is model
    assert cache.nbytes < sum(tensor.nbytes for tensor in cache.values())
    assert len(set(cache)) == len(cache)
    assert not any(tensor.requires_grad for tensor in cache.values())
    with pytest.raises(NotCachedError, match=r"names_filter='blocks\.0\.attn\.hook_result'"):
        cache["result", 0]
    with pytest.raises(AbsentPointError, match="no rotary"):
        cache["rot_q", 0]


def test_absent_points_say_why() -> None:
    reasons = {
        "gpt2": (("rot_q", 0), "no rotary"),
        "llama": ("hook_pos_embed", "no learned absolute positions"),
        "neox": (("resid_mid", 0), "in parallel"),
        "neox_sequential": (("pre_linear", 1), "not gated"),
        "mistral": (("scale", 0, "ln1_post"), "no norm after"),
    }
    for family, (name, reason) in reasons.items():
        model = lensbridge.load(build(Shape(family)))
        with pytest.raises(AbsentPointError, match=reason):
            model.run_with_cache(tokens(), names_filter=name)


@pytest.mark.parametrize(
    ("pos_slice", "index"),
    [
        (2, slice(2, 3)),
        (-1, slice(-1, None)),
        (slice(1, 4), slice(1, 4)),
        ((1, 6, 2), slice(1, 6, 2)),
        ([0, 3], [0, 3]),
        (torch.tensor([5, 1]), [5, 1]),
    ],
)
def test_pos_slice_keeps_those_positions_and_no_more_memory(pos_slice, index) -> None:
    model = lensbridge.load(build(Shape("llama")))
    with torch.no_grad():
        _, whole = model.run_with_cache(tokens(), names_filter=model.hook_names)
        _, part = model.run_with_cache(tokens(), names_filter=model.hook_names, pos_slice=pos_slice)
    for name, value in part.items():
        query_first = name.endswith(("scores", "pattern"))
        expected = whole[name][:, :, index] if query_first else whole[name][:, index]
        assert torch.equal(value, expected), name
        assert value.untyped_storage().nbytes() == value.nbytes, name


@pytest.mark.parametrize("position", [5, -6])
def test_a_position_that_is_not_there_is_refused(position: int) -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(InputError, match="there are 5 positions"):
        model.run_with_cache(tokens(1, 5), "resid_pre", pos_slice=position)
    assert model.engine.is_idle


def test_device_dtype_batch_dim_and_plain_dict() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ids = tokens(1)
    _, plain = model.run_with_cache(ids)
    _, cache = model.run_with_cache(ids, dtype=torch.float16, device="cpu", remove_batch_dim=True)
    assert cache["q", 0].shape == plain["q", 0].shape[1:]
    assert torch.equal(cache["q", 0], plain["q", 0][0].half())
    assert torch.equal(plain.remove_batch_dim()["z", 1], plain["z", 1][0])
    _, dictionary = model.run_with_cache(ids, return_cache_object=False)
    assert type(dictionary) is dict
    assert torch.equal(dictionary["blocks.0.attn.hook_q"], plain["q", 0])
    with pytest.raises(InputError, match="2 examples"):
        model.run_with_cache(tokens(2), remove_batch_dim=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_holds_the_bytes_that_were_asked_for(family: str) -> None:
    """q alone must not hold the whole fused projection alive."""
    model = lensbridge.load(build(Shape(family)))
    with torch.no_grad():
        for name in ("q", "v", "rot_k", "pattern", "resid_post", "post"):
            if name == "rot_k" and family == "gpt2":
                continue
            _, cache = model.run_with_cache(tokens(), names_filter=name)
            assert cache.nbytes == sum(tensor.nbytes for tensor in cache.values()), name
        _, together = model.run_with_cache(tokens(), names_filter=["q", "k", "v"])
        assert together.nbytes == sum(tensor.nbytes for tensor in together.values())


def test_reading_what_was_overwritten_is_an_error() -> None:
    from lensbridge.errors import StaleActivationError

    model = lensbridge.load(build(Shape("gpt2")))
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens())
        logits[:, 0] = 0
        with pytest.raises(StaleActivationError, match="hook_logits was written to"):
            cache["logits"]
        cache["q", 0]


def test_a_native_module_that_writes_into_what_was_captured_is_found_out() -> None:
    from lensbridge.errors import StaleActivationError

    hf = build(Shape("gpt2"))
    handle = hf.transformer.h[0].mlp.register_forward_pre_hook(lambda m, args: args[0].mul_(2))
    model = lensbridge.load(hf)
    name = "blocks.0.ln2.hook_out"
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens(), names_filter=name)
    with pytest.raises(StaleActivationError, match=name):
        cache[name]
    handle.remove()


def test_inference_mode_and_undetached_caches() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with torch.inference_mode():
        logits, cache = model.run_with_cache(tokens())
        assert torch.equal(cache["logits"], logits)
    logits, cache = model.run_with_cache(tokens(), detach=False)
    grad = torch.autograd.grad(logits.sum(), cache["resid_post", 0])[0]
    assert grad.abs().max() > 0


def test_contexts_nest_and_edits_come_before_reads() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ids = tokens()
    order = []

    def note(tag: str):
        def hook(value: Tensor, hook) -> Tensor:
            order.append(tag)
            return value + 1

        return hook

    name = "blocks.0.hook_resid_post"
    with torch.no_grad():
        _, plain = model.run_with_cache(ids, names_filter=name)
        model.add_hook(name, note("added"))
        with model.hooks(fwd_hooks=[(name, note("outer"))]):
            with model.hooks(fwd_hooks=[(name, note("inner"))]):
                _, cache = model.run_with_cache(ids, names_filter=name)
            model.run_with_hooks(ids, fwd_hooks=[(name, note("call"))])
        model.reset_hooks()
        _, after = model.run_with_cache(ids, names_filter=name)
    assert order == ["added", "outer", "inner", "added", "outer", "call"]
    torch.testing.assert_close(cache[name], plain[name] + 3)
    assert torch.equal(after[name], plain[name])


def test_added_permanent_and_reset() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    fired = []
    model.add_hook("blocks.0.hook_resid_post", lambda v, hook: fired.append("plain"))
    model.add_perma_hook("blocks.0.hook_resid_post", lambda v, hook: fired.append("permanent"))
    model.add_hook("blocks.0.hook_resid_post", lambda g, hook: fired.append("bwd"), dir="bwd")
    model(tokens()).sum().backward()
    assert fired == ["plain", "permanent", "bwd"]
    fired.clear()
    model.reset_hooks(direction="bwd")
    model(tokens()).sum().backward()
    assert fired == ["plain", "permanent"]
    fired.clear()
    model.reset_hooks()
    model(tokens())
    assert fired == ["permanent"]
    model.remove_hook("blocks.0.hook_resid_post")
    fired.clear()
    model(tokens())
    assert fired == []


def test_hooks_that_stay_and_contexts_that_keep() -> None:
    model = lensbridge.load(build(Shape("gpt2")))

    def count(value: Tensor, hook) -> None:
        hook.ctx["runs"] = hook.ctx.get("runs", 0) + 1

    name = "blocks.1.attn.hook_z"
    model.run_with_hooks(tokens(), fwd_hooks=[(name, count)], reset_hooks_end=False)
    model(tokens())
    assert model.hook_dict[name].ctx == {"runs": 2}
    model.reset_hooks()
    model(tokens())
    assert model.hook_dict[name].ctx == {}
    model.run_with_hooks(tokens(), fwd_hooks=[(name, count)])
    assert model.hook_dict[name].ctx == {"runs": 1}
    model.run_with_hooks(tokens(), fwd_hooks=[(name, count)], clear_contexts=True)
    assert model.hook_dict[name].ctx == {}


def test_what_a_hook_function_gets_however_it_is_written() -> None:
    from functools import partial

    model = lensbridge.load(build(Shape("gpt2")))
    seen = []

    def named(value: Tensor, head: int, hook) -> None:
        seen.append((hook.name, hook.layer(), head, value.shape))

    def other_name(value: Tensor, point) -> None:
        seen.append((point.name, point.layer(), None, value.shape))

    class Callable:
        def __call__(self, value: Tensor, hook) -> None:
            seen.append((hook.name, hook.layer(), "object", value.shape))

    name = "blocks.1.attn.hook_z"
    hooks = [(name, partial(named, head=3)), (name, other_name), (name, Callable())]
    model.run_with_hooks(tokens(), fwd_hooks=hooks)
    shape = torch.Size([2, 7, 4, 6])
    assert seen == [(name, 1, extra, shape) for extra in (3, None, "object")]


def test_explain_says_what_where_and_how() -> None:
    model = lensbridge.load(build(Shape("neox")))
    point = model.explain(("k", -1))
    assert (point.name, point.axes) == ("blocks.1.attn.hook_k", "b p g d")
    assert "gpt_neox.layers.1.attention.query_key_value" in point.where
    assert point.editable
    assert not point.derived
    assert "editable" in str(point)
    assert model.explain("blocks.0.attn.hook_result").derived
    assert [p.name for p in model.hook_points()] == model.hook_names == list(model.hook_dict)
    for point in model.hook_points():
        _, cache = model.run_with_cache(tokens(), names_filter=point.name)
        assert cache[point.name].ndim == len(point.axes.split())


def test_base_models_have_no_head_and_say_so() -> None:
    hf = build(Shape("gpt2"))
    model = lensbridge.load(hf.transformer)
    ids = tokens()
    with pytest.raises(LensbridgeError, match="no language-model head"):
        model(ids)
    _, cache = model.run_with_cache(ids, return_type=None)
    assert torch.equal(cache["ln_final.hook_out"], hf.transformer(ids).last_hidden_state)
    assert "hook_logits" not in model.hook_names
    with pytest.raises(LensbridgeError, match="no language-model head"):
        _ = model.W_U


def test_training_mode_with_dropout_adds_up() -> None:
    """What is added to the stream comes after the dropout."""
    for family in ("gpt2", "neox_sequential", "neox"):
        hf = build(Shape(family))
        for module in hf.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        hf.train()
        _, cache = lensbridge.load(hf).run_with_cache(tokens())
        total = cache["resid_pre", 0] + cache["attn_out", 0] + cache["mlp_out", 0]
        torch.testing.assert_close(cache["resid_post", 0], total)
        assert (cache["mlp_out", 0] == 0).any()


def test_detached_activations_alone_build_no_graph() -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    recorded: list[bool] = []
    handle = model.lm_head.register_forward_pre_hook(
        lambda module, args: recorded.append(args[0].requires_grad)
    )
    inner = model.model.layers[1].register_forward_hook(
        lambda module, args, out: recorded.append(out.requires_grad)
    )
    _, cache = lens.run_with_cache(tokens(), "resid_post", return_type=None)
    assert not any(recorded)
    _, live = lens.run_with_cache(tokens(), "resid_post", return_type=None, detach=False)
    assert live["resid_post", 1].requires_grad
    assert torch.equal(cache["resid_post", 1], live["resid_post", 1])
    resid, _ = lens.run_with_cache(tokens(), "q", return_type=None, stop_at_layer=2)
    assert resid is not None
    assert resid.requires_grad
    with lens.hooks(bwd_hooks=[(("resid_post", 0), lambda grad, hook: None)]):
        lens.run_with_cache(tokens(), "q", return_type=None)
    handle.remove()
    inner.remove()

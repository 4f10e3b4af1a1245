"""Runs inside hooks are runs of their own, and nothing of any run is left on model or thread."""

import contextvars
import copy
import gc
import io
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from tiny_models import Shape, build, tokens
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

import lensbridge
from lensbridge.errors import HookError, HookNeverFiredError

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tokens()
POINTS = ("pattern", "attn_scores", "resid_pre", "q", "z", "rot_q", "result", "mlp_out")


def is_bare(model: nn.Module) -> bool:
    """Whether nothing is on a model or on the thread."""
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    shadows = any("forward" in m.__dict__ for m in model.modules())
    return not hooks and not shadows and not _get_current_function_mode_stack()


def double(value: Tensor, hook: Any) -> Tensor:
    return value * 2


@pytest.mark.parametrize("point", POINTS)
def test_a_run_inside_a_hook_has_no_hooks(point: str) -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    clean = model(IDS).logits
    inner: list[Tensor] = []

    def rerun(value: Tensor, hook: Any) -> Tensor:
        inner.append(lens(IDS))
        inner.append(model(IDS).logits)
        inner.append(lens.run_with_hooks(IDS, [((point, 0), double)]))
        _, cache = lens.run_with_cache(IDS, [(point, 1)])
        assert (point, 1) in cache
        return value * 2

    found = lens.run_with_hooks(IDS, [((point, 1), rerun)])
    assert torch.equal(found, lens.run_with_hooks(IDS, [((point, 1), double)]))
    assert torch.equal(inner[0], clean)
    assert torch.equal(inner[1], clean)
    assert torch.equal(inner[2], lens.run_with_hooks(IDS, [((point, 0), double)]))
    assert is_bare(model)


def test_a_run_inside_a_backward_hook_and_in_a_permanent_one() -> None:
    model = build(Shape("gpt2"))
    lens = lensbridge.load(model)
    clean = model(IDS).logits
    inner: list[Tensor] = []

    def rerun(value: Tensor, hook: Any) -> None:
        inner.append(lens(IDS))

    handle = lens.add_hook(("resid_post", 0), rerun)
    assert torch.equal(model(IDS).logits, clean)
    assert torch.equal(lens(IDS), clean)
    handle.remove()
    lens.run_with_hooks(IDS, bwd_hooks=[(("resid_post", 1), rerun)]).sum().backward()
    assert len(inner) == 3
    assert all(torch.equal(one, clean) for one in inner)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_exception_in_an_inner_run_leaves_nothing(depth: int) -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    clean = model(IDS).logits

    def deeper(level: int) -> Any:
        def hook(value: Tensor, hook: Any) -> None:
            if level == 0:
                raise RuntimeError("at the bottom")
            lens.run_with_hooks(IDS, [(("pattern", 0), deeper(level - 1))])

        return hook

    with pytest.raises(RuntimeError, match="at the bottom"):
        lens.run_with_hooks(IDS, [(("pattern", 1), deeper(depth))])
    assert is_bare(model)
    assert torch.equal(model(IDS).logits, clean)


def test_an_interrupt_leaves_nothing_of_permanent_hooks() -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    stop = [True]

    def interrupt(value: Tensor, hook: Any) -> None:
        if stop[0]:
            raise KeyboardInterrupt

    handle = lens.add_hook(("pattern", 1), interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(IDS)
    stop[0] = False
    assert model(IDS).logits.isfinite().all()
    assert not _get_current_function_mode_stack()
    handle.remove()
    assert is_bare(model)


def test_an_inner_run_inside_a_run_from_a_layer_goes_through_every_layer() -> None:
    model = build(Shape("llama", layers=3))
    lens = lensbridge.load(model)
    clean, cache = lens.run_with_cache(IDS)
    inner: list[Tensor] = []
    lens.run_with_hooks(
        cache["resid_pre", 2],
        [(("resid_pre", 2), lambda value, hook: inner.append(model(IDS).logits))],
        start_at_layer=2,
    )
    assert torch.equal(inner[0], clean)


# --- hooks that cannot act -----------------------------------------------------------------------


def test_a_context_whose_hooks_do_not_act() -> None:
    lens = lensbridge.load(build(Shape("gpt2")))
    pairs = [("embed", double)]
    with pytest.raises(HookNeverFiredError, match="not run inside"), lens.hooks(pairs):
        pass
    with pytest.raises(ZeroDivisionError), lens.hooks([("embed", double)]):
        _ = 1 / 0
    with lens.hooks([]):
        pass


def test_a_permanent_hook_that_no_run_reaches() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=30)
    config.decoder_start_token_id = 0
    lens = lensbridge.load(T5ForConditionalGeneration(config).eval())
    ids = {"input_ids": IDS % 30, "decoder_input_ids": IDS % 30}
    lens.add_hook(("decoder.0.hook_resid_post"), double)
    lens(ids)
    lens.reset_hooks()
    clip = lensbridge.load(build(Shape("llama")))
    clip.add_hook(("resid_post", 1), double)
    clip(IDS, stop_at_layer=1, return_type=None)  # a run of a part says nothing
    clip(IDS)


def test_a_thread_inside_a_context_is_loud_or_takes_the_hooks_along() -> None:
    model = build(Shape("gpt2"))
    lens = lensbridge.load(model)
    clean, steered = lens(IDS), lens.run_with_hooks(IDS, [(("resid_post", 0), double)])
    found: list[Tensor] = []

    def work() -> None:
        found.append(lens(IDS))

    def start(target: Any) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    with (
        pytest.raises(HookNeverFiredError, match="carry_hooks"),
        lens.hooks([(("resid_post", 0), double)]),
    ):
        start(work)
    with lens.hooks([(("resid_post", 0), double)]):
        context = contextvars.copy_context()
        start(lambda: context.run(work))
    assert torch.equal(found[0], clean)
    assert torch.equal(found[1], steered)


def test_streamed_text_is_steered() -> None:
    lens = lensbridge.load("demo")
    prompt = "The Eiffel Tower is in the city of"
    plain = "".join(lens.stream(prompt, 4, do_sample=False))
    assert prompt + plain == lens.generate(prompt, 4, do_sample=False, verbose=False)
    noise = torch.randn(lens.cfg.d_model, generator=torch.Generator().manual_seed(0)) * 9
    hook = (("resid_post", 1), lambda value, hook: value + noise)
    with lens.hooks([hook]):
        pieces = lens.stream(prompt, 4, do_sample=False)
        steered = "".join(pieces)
        whole = lens.generate(prompt, 4, do_sample=False, verbose=False)
    assert prompt + steered == whole != prompt + plain
    with pytest.raises(TypeError, match="no keyword 'nope'"):
        list(lens.stream(prompt, nope=1))


# --- ownership -----------------------------------------------------------------------------------


def test_permanent_hooks_are_a_lens_s_own() -> None:
    model = build(Shape("gpt2"))
    one, two = lensbridge.load(model), lensbridge.load(model)
    clean = model(IDS).logits
    one.add_hook(("resid_post", 0), double)
    edited = one(IDS)
    assert not torch.equal(edited, clean)
    assert torch.equal(two(IDS), clean)
    _, cache = two.run_with_cache(IDS)
    assert torch.equal(two.run_with_hooks(IDS, [(("resid_post", 1), lambda v, hook: v)]), clean)
    assert torch.equal(cache["resid_post", 0], one.run_with_cache(IDS)[1]["resid_post", 0] / 2)
    assert torch.equal(model(IDS).logits, edited)
    two.reset_hooks(including_permanent=True)
    assert torch.equal(one(IDS), edited)


def test_hooks_die_with_their_lens() -> None:
    model = build(Shape("gpt2"))
    clean = model(IDS).logits
    lens = lensbridge.load(model)
    lens.add_perma_hook(("pattern", 0), double)
    assert not torch.equal(model(IDS).logits, clean)
    lens.run_with_cache(IDS)
    _ = lens.W_Q, lens.blocks, lens.cfg
    lens = lensbridge.load(model)  # a cell that is run again
    assert torch.equal(model(IDS).logits, clean)
    assert is_bare(model)
    del lens
    gc.collect()


# --- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["permanent", "context"])
def test_copies_and_pickles_with_hooks_on(scope: str) -> None:
    model = build(Shape("llama"))
    lens = lensbridge.load(model)
    clean, kept = lens.run_with_cache(IDS)

    def check() -> None:
        assert not torch.equal(model(IDS).logits, clean)
        other = copy.deepcopy(model)
        assert torch.equal(other(IDS).logits, clean)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(IDS).logits, clean)
        twin = copy.deepcopy(lens)
        assert twin.hf_model is not model
        assert torch.equal(twin(IDS), clean)
        assert torch.equal(twin.run_with_cache(IDS)[1]["q", 1], kept["q", 1])
        with pytest.raises(HookError, match=r"hooks on it \(edit at blocks\.0\.attn"):
            pickle.dumps(lens)
        cache = pickle.loads(pickle.dumps(kept))
        assert torch.equal(cache["q", 1], kept["q", 1])
        assert torch.equal(copy.deepcopy(kept)["q", 1], kept["q", 1])

    if scope == "context":
        with lens.hooks([(("pattern", 0), double), (("resid_post", 1), double)]):
            check()
    else:
        lens.add_hook(("pattern", 0), double)
        check()


def test_editing_a_copy_leaves_the_model() -> None:
    lens = lensbridge.load("demo")
    prompt = "The Eiffel Tower is in the city of"
    clean = lens(prompt)
    twin = copy.deepcopy(lens)
    with torch.no_grad():
        twin.W_E.mul_(0)
    twin.add_hook(("resid_post", 0), double)
    assert torch.equal(lens(prompt), clean)
    assert torch.equal(twin.to_tokens(prompt), lens.to_tokens(prompt))


def test_nothing_of_a_run_is_kept_after_it() -> None:
    lens = lensbridge.load(build(Shape("gpt2")))
    with lens.hooks([(("resid_post", 0), double)]):
        _, cache = lens.run_with_cache(IDS, ["q", "resid_post"])
    kept = [weakref.ref(tensor) for tensor in cache.values()]
    assert len(kept) == 4
    gc.disable()
    try:
        del cache
        assert not any(one() is not None for one in kept)
        held: list[weakref.ref[Tensor]] = []
        hook = (("z", 1), lambda grad, hook: held.append(weakref.ref(grad)))
        lens.run_with_hooks(IDS, bwd_hooks=[hook]).sum().backward()
        assert lens.engine.aside._last[0] is None
    finally:
        gc.enable()

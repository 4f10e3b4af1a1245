"""The promise: the specimen is untouched, nothing is left behind, threads do not meet."""

import copy
import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import FAMILIES, Shape, build, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import HookError, HookNeverFiredError, UnknownPointError


def hooks_on(model: nn.Module) -> int:
    """How many PyTorch hooks hang on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def shadows_on(model: nn.Module) -> list[str]:
    """Modules whose forward is shadowed by an attribute."""
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


def fingerprint(model: nn.Module) -> tuple:
    """What must stay as it was: module ids and types, state keys and bytes, config."""
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return modules, state, model.config.to_dict(), dict(vars(model.generation_config))


def assert_untouched(model: nn.Module, before: tuple) -> None:
    modules, state, config, generation = fingerprint(model)
    assert modules == before[0]
    assert list(state) == list(before[1])
    assert all(torch.equal(state[key], before[1][key]) for key in state)
    assert config == before[2]
    assert generation == before[3]
    assert hooks_on(model) == 0
    assert shadows_on(model) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_same_object_and_untouched(family: str) -> None:
    hf = build(Shape(family))
    before = fingerprint(hf)
    ids = tokens()
    model = lensbridge.load(hf)
    assert model.hf_model is hf
    model.run_with_cache(ids, names_filter=model.hook_names)
    model.run_with_hooks(ids, fwd_hooks=[(model.hook_names, lambda v, hook: v)])
    model(model(ids, stop_at_layer=1), start_at_layer=1)
    model.generate(ids, max_new_tokens=2, verbose=False)
    assert_untouched(hf, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_copy_work_while_hooks_are_on(family: str, tmp_path) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf)
    ids = tokens()
    with model.hooks(fwd_hooks=[(("resid_post", 0), lambda v, hook: v * 2)]):
        hf.save_pretrained(tmp_path)
        keys = set(hf.state_dict())
        doubled = model(ids)
    assert keys == set(build(Shape(family)).state_dict())
    again = type(hf).from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids))
    assert not torch.equal(doubled, model(ids))


def test_a_hook_of_the_users_own_still_fires_and_sees_the_edit() -> None:
    hf = build(Shape("llama"))
    seen = []
    handle = hf.model.layers[1].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model = lensbridge.load(hf)
    model.run_with_hooks(tokens(), fwd_hooks=[(("resid_post", 0), lambda v, hook: v * 0)])
    handle.remove()
    assert seen[0].abs().max() == 0


class StumbleError(Exception):
    """What a user's hook may raise."""


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_behind_when_a_hook_raises_anywhere(family: str, kernel: str) -> None:
    hf = build(Shape(family, kernel=kernel))
    model = lensbridge.load(hf)
    ids = tokens()
    bare = model(ids)

    def stumble(value: Tensor, hook) -> None:
        raise StumbleError(hook.name)

    for name in model.hook_names:
        with pytest.raises(StumbleError, match=name):
            model.run_with_hooks(ids, fwd_hooks=[(name, stumble)])
        assert hooks_on(hf) == 0, name
    assert torch.equal(model(ids), bare)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_inside_attention_leaves_no_watcher(error: type[BaseException]) -> None:
    model = lensbridge.load(build(Shape("gpt2")))

    def interrupt(value: Tensor, hook) -> None:
        raise error

    with pytest.raises(error):
        model.run_with_hooks(tokens(), fwd_hooks=[(("pattern", 0), interrupt)])
    assert torch.overrides._get_current_function_mode_stack() == []
    assert hooks_on(model.hf_model) == 0


def test_an_error_in_the_middle_of_a_hooks_context_is_not_masked() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(StumbleError), model.hooks(fwd_hooks=[(("z", 1), lambda v, hook: v)]):
        raise StumbleError
    assert hooks_on(model.hf_model) == 0


def test_idle_runs_attach_nothing() -> None:
    hf = build(Shape("gpt2"))
    model = lensbridge.load(hf)
    counted = []
    original = nn.Module.register_forward_hook

    def counting(self, *args, **kwargs):
        counted.append(self)
        return original(self, *args, **kwargs)

    nn.Module.register_forward_hook = counting
    try:
        model(tokens())
    finally:
        nn.Module.register_forward_hook = original
    assert counted == []


def test_you_pay_only_for_what_you_ask(monkeypatch) -> None:
    """Reading one residual stream computes no score, no norm, no per-head write."""
    from lensbridge.native import norm as norms
    from lensbridge.sites.kernel import tap

    def refuse(*args, **kwargs):
        raise AssertionError("computed without being asked for")

    monkeypatch.setattr(tap, "masked_scores", refuse)
    monkeypatch.setattr(norms.Norm, "scale", refuse)
    monkeypatch.setattr(norms.Norm, "normalize", refuse)
    model = lensbridge.load(build(Shape("llama")))
    _, cache = model.run_with_cache(tokens(), names_filter=["resid_post", "q", "rot_k", "z"])
    assert len(cache) == 8
    with pytest.raises(AssertionError, match="without being asked"):
        model.run_with_cache(tokens(), names_filter="pattern")


def test_everything_excludes_what_comes_only_when_named() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    _, everything = model.run_with_cache(tokens())
    _, by_callable = model.run_with_cache(tokens(), names_filter=lambda name: True)
    _, by_layer = model.run_with_cache(tokens(), names_filter=lambda n: n.startswith("blocks.0."))
    for cache in (everything, by_callable, by_layer):
        assert "blocks.0.attn.hook_q" in cache
        assert "blocks.0.ln1.hook_scale" in cache
        for name in ("attn.hook_result", "hook_q_input", "hook_attn_in", "hook_mlp_in"):
            assert f"blocks.0.{name}" not in cache
    _, asked = model.run_with_cache(tokens(), names_filter=lambda n: n.endswith("hook_result"))
    assert list(asked) == ["blocks.0.attn.hook_result", "blocks.1.attn.hook_result"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_eight_threads_of_twenty_cached_runs_each_get_their_own(family: str) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf)
    inputs = [tokens(1, 3 + i % 5, seed=i) for i in range(160)]
    wanted = ["blocks.1.hook_resid_mid"] if family != "neox" else []
    wanted += ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_z", "blocks.1.ln2.hook_scale"]
    with torch.no_grad():
        expected = [model.run_with_cache(ids, names_filter=wanted) for ids in inputs]

    def one(index: int) -> bool:
        with torch.no_grad():
            if index % 4 == 3:  # edits in one thread, plain reads in the others
                hooks = [(("z", 0), lambda v, hook: v * 0)]
                logits = model.run_with_hooks(inputs[index], fwd_hooks=hooks)
                return not torch.equal(logits, expected[index][0])
            if index % 4 == 2:  # late starts shadow layers; other threads must not notice
                residual = model(inputs[index], stop_at_layer=1)
                return torch.equal(model(residual, start_at_layer=1), expected[index][0])
            logits, cache = model.run_with_cache(inputs[index], names_filter=wanted)
            same = torch.equal(logits, expected[index][0])
            return same and all(torch.equal(cache[n], expected[index][1][n]) for n in wanted)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(160)))
    assert all(results), [i for i, right in enumerate(results) if not right]
    assert hooks_on(hf) == 0
    assert shadows_on(hf) == []


def test_a_hooks_context_belongs_to_its_thread() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ids = tokens()
    with torch.no_grad():
        bare = model(ids)
        elsewhere = []
        with model.hooks(fwd_hooks=[(("resid_post", 0), lambda v, hook: v * 0)]):
            here = model(ids)
            thread = threading.Thread(target=lambda: elsewhere.append(model.hf_model(ids).logits))
            thread.start()
            thread.join()
            raw_here = model.hf_model(ids).logits
    assert not torch.equal(here, bare)
    assert torch.equal(here, raw_here)
    assert torch.equal(elsewhere[0], bare)


def test_added_hooks_act_in_every_thread_and_in_bare_calls_once() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    fired = []
    handle = model.add_hook(("resid_post", 0), lambda v, hook: fired.append(hook.name))
    model.hf_model(tokens())
    model(tokens())
    thread = threading.Thread(target=model, args=(tokens(),))
    thread.start()
    thread.join()
    with model.hooks(fwd_hooks=[(("z", 0), lambda v, hook: v)]):
        model(tokens())
    assert fired == ["blocks.0.hook_resid_post"] * 4
    handle.remove()
    handle.remove()
    model(tokens())
    assert len(fired) == 4
    assert hooks_on(model.hf_model) == 0


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_fires_exactly_once(family: str, kernel: str) -> None:
    model = lensbridge.load(build(Shape(family, kernel=kernel)))
    fired: list[str] = []
    hooks = [(model.hook_names, lambda v, hook: fired.append(hook.name))]
    model.run_with_hooks(tokens(), fwd_hooks=hooks)
    assert sorted(fired) == sorted(model.hook_names)
    in_flow = [name for name in fired if name.startswith("blocks.0.")]
    assert in_flow.index("blocks.0.hook_resid_pre") == 0
    assert in_flow[-1] == "blocks.0.hook_resid_post"


def test_a_named_point_that_the_run_does_not_pass_is_an_error() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(HookNeverFiredError, match=r"blocks\.1\.hook_resid_post.*before layer 1"):
        model.run_with_cache(tokens(), names_filter="blocks.1.hook_resid_post", stop_at_layer=1)
    _, cache = model.run_with_cache(tokens(), stop_at_layer=1)
    assert "blocks.0.hook_resid_post" in cache
    assert "blocks.1.hook_resid_pre" not in cache
    with (
        pytest.raises(HookNeverFiredError, match=r"blocks\.1\.attn\.hook_z"),
        model.hooks(fwd_hooks=[(("z", 1), lambda v, hook: v)]),
    ):
        model(tokens(), stop_at_layer=1)


def test_a_misspelt_name_is_an_error_and_nothing_is_attached() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(UnknownPointError, match=r"Did you mean 'blocks\.0\.attn\.hook_pattern'"):
        model.run_with_hooks(tokens(), fwd_hooks=[("blocks.0.attn.hook_patern", lambda v, hook: v)])
    with pytest.raises(UnknownPointError):
        model.run_with_cache(tokens(), names_filter=["blocks.0.attn.hook_z", "blocks.0.atn.hook_q"])
    with pytest.raises(UnknownPointError, match="selects no point"):
        model.run_with_cache(tokens(), names_filter=lambda name: "patern" in name)
    with pytest.raises(TypeError, match="names_filtr"):
        model.run_with_cache(tokens(), names_filtr="z")
    assert hooks_on(model.hf_model) == 0


def test_gradient_checkpointing_with_hooks_is_refused() -> None:
    hf = build(Shape("llama"))
    hf.model.gradient_checkpointing = True
    hf.train()
    model = lensbridge.load(hf)
    with pytest.raises(HookError, match="checkpointing"):
        model.run_with_hooks(tokens(), fwd_hooks=[(("z", 0), lambda v, hook: v)])
    hf.eval()
    model.run_with_hooks(tokens(), fwd_hooks=[(("z", 0), lambda v, hook: v)])


def test_a_kernel_that_shows_nothing_is_switched_for_that_run_and_said_once(monkeypatch) -> None:
    """Stands for flash attention: a kernel that is no torch function."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    from lensbridge.sites.kernel import switch

    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
            weights = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
            return torch.special.softmax(weights, -1) @ v

    def opaque(module, query, key, value, mask, **kwargs):
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        return Opaque.apply(query, key, value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("opaque", opaque)
    AttentionMaskInterface.register("opaque", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    monkeypatch.setattr(switch, "_told", set())
    hf = build(Shape("llama", kernel="opaque"))
    model = lensbridge.load(hf)
    sdpa = lensbridge.load(build(Shape("llama")))
    with torch.no_grad():
        with pytest.warns(UserWarning, match="opaque"):
            _, cache = model.run_with_cache(tokens(), names_filter="pattern")
        _, expected = sdpa.run_with_cache(tokens(), names_filter="pattern")
        _, again = model.run_with_cache(tokens(), names_filter="pattern")
        model.run_with_cache(tokens(), names_filter="z")
    assert torch.equal(cache["pattern", 1], expected["pattern", 1])
    assert torch.equal(again["pattern", 1], expected["pattern", 1])
    assert hf.config._attn_implementation == "opaque"


def test_the_model_pickles_and_deep_copies_while_a_lens_is_on_it() -> None:
    hf = build(Shape("llama"))
    model = lensbridge.load(hf)
    ids = tokens()
    model.run_with_cache(ids)
    buffer = io.BytesIO()
    torch.save(hf, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(ids).logits, model(ids))
    assert torch.equal(copy.deepcopy(hf)(ids).logits, model(ids))


def test_functional_call_and_a_second_lens_see_the_same_model() -> None:
    hf = build(Shape("gpt2"))
    one, two = lensbridge.load(hf), lensbridge.load(hf)
    ids = tokens()
    with one.hooks(fwd_hooks=[(("resid_post", 0), lambda v, hook: v * 0)]):
        assert torch.equal(two(ids), one(ids))
    state = dict(hf.named_parameters())
    out = torch.func.functional_call(hf, state, (ids,)).logits
    assert torch.equal(out, one(ids))


def test_public_names_come_when_they_are_asked_for() -> None:
    code = (
        "import sys, lensbridge\n"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'matplotlib', 'numpy'}\n"
        "assert not heavy & set(sys.modules)\n"
        "for name in dir(lensbridge):\n"
        "    assert getattr(lensbridge, name) is not None, name\n"
        "assert lensbridge.analysis.logit_lens and lensbridge.FactoredMatrix\n"
        "from lensbridge import ActivationCache, evals, patching\n"
        "assert not {'datasets', 'matplotlib', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

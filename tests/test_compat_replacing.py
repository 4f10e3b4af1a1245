"""Modules and points of somebody else's in a model's places, against hooks on the bare model."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_models import Layer, Shape, build, embed_of, final_norm_of, tokens
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import lensbridge
from lensbridge.compat.transformer_lens import HookedTransformer, HookPoint
from lensbridge.errors import EditError, HookError, InputError, WeightError

IDS = tokens()
PLACES = (
    "embed", "unembed", "ln_final", "blocks.1", "blocks.0.attn", "blocks.1.mlp", "blocks.1.ln1",
    "blocks.0.ln2",
)  # fmt: skip
FAMILIES = ("gpt2", "llama", "qwen2", "neox")


class Wrapper(nn.Module):
    """Keeps the old module, with points around it, and calls it as it is called."""

    def __init__(self, old: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.old, self.factor = old, factor
        self.hook_in, self.hook_out = HookPoint(), HookPoint()
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        args = (self.hook_in(args[0]), *args[1:]) if args else ()
        out: Tensor = self.hook_out(self.old(*args, **kwargs)) * self.factor
        return out


def opened(family: str, **shape: Any) -> tuple[nn.Module, Any]:
    native = build(Shape(family, **shape))
    return native, HookedTransformer.of(lensbridge.load(native))


def host_of(model: Any, path: str) -> tuple[Any, str]:
    *steps, last = path.split(".")
    for step in steps:
        model = model[int(step)] if step.isdigit() else getattr(model, step)
    return model, last


def get(model: Any, path: str) -> Any:
    host, last = host_of(model, path)
    return host[int(last)] if last.isdigit() else getattr(host, last)


def put(model: Any, path: str, module: Any) -> None:
    host, last = host_of(model, path)
    if last.isdigit():
        host[int(last)] = module
    else:
        setattr(host, last, module)


def take_off(model: Any, path: str) -> None:
    host, last = host_of(model, path)
    if last.isdigit():
        del host[int(last)]
    else:
        delattr(host, last)


def native_module(native: nn.Module, family: str, path: str) -> nn.Module:
    """The module that is at a place, by hand."""
    last = path.rpartition(".")[2]
    if last == "embed":
        return embed_of(native, family)
    if last == "unembed":
        head: nn.Module = native.get_output_embeddings()
        return head
    if last == "ln_final":
        return final_norm_of(native, family)
    layer = Layer(native, family, int(path.split(".")[1]))
    found: nn.Module = layer.block if last.isdigit() else getattr(layer, last)
    return found


def with_native_output(
    native: nn.Module, module: nn.Module, edit: Callable[[Tensor], Tensor], ids: Tensor = IDS
) -> Tensor:
    """Logits of the bare model whose module's output was edited by a plain PyTorch hook."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return edit(output)
        return (edit(output[0]), *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        logits: Tensor = native(ids).logits
    finally:
        handle.remove()
    return logits


def state_of(native: nn.Module) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in native.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("path", PLACES)
def test_a_wrapper_stands_at_its_place_and_is_taken_off(family: str, path: str) -> None:
    native, model = opened(family)
    bare, before = native(IDS).logits, state_of(native)
    base, cache = model.run_with_cache(IDS)
    old = get(model, path)
    wrapper = Wrapper(old)
    put(model, path, wrapper)
    assert get(model, path) is wrapper
    assert get(model, f"{path}.old") is old
    through, inside = model.run_with_cache(IDS)
    assert torch.equal(through, base)
    assert wrapper.calls == 1
    assert all(torch.equal(inside[name], value) for name, value in cache.items())
    model.setup()
    inside = model.run_with_cache(IDS)[1]
    for name, value in cache.items():
        moved = f"{path}.old{name.removeprefix(path)}" if name.startswith(f"{path}.") else name
        assert torch.equal(inside[moved], value), name
    wrapper.factor = 0.5
    module = native_module(native, family, path)
    expected = with_native_output(native, module, lambda out: out * 0.5)
    assert torch.equal(model(IDS), expected)
    assert not torch.equal(expected, bare)
    assert torch.equal(native(IDS).logits, bare)
    assert torch.equal(lensbridge.load(native)(IDS), bare)
    take_off(model, path)
    assert get(model, path) is old
    assert torch.equal(model(IDS), base)
    assert list(model.run_with_cache(IDS)[1]) == list(cache)
    assert all(point.name == name for name, point in model.hook_dict.items())
    assert before.keys() == native.state_dict().keys()
    assert all(torch.equal(one, before[name]) for name, one in native.state_dict().items())
    assert not any("forward" in vars(module) for module in native.modules())


def test_wrappers_act_in_generation_hooks_and_gradients() -> None:
    native, model = opened("llama")
    for block in model.blocks:
        block.mlp = Wrapper(block.mlp, 0.5)
    prompt = IDS[:1]
    expected = prompt
    handles = [
        Layer(native, "llama", i).mlp.register_forward_hook(lambda *a: a[-1] * 0.5)
        for i in range(2)
    ]
    for _ in range(4):
        expected = torch.cat([expected, native(expected).logits[:, -1:].argmax(-1)], dim=1)
    for handle in handles:
        handle.remove()
    options: dict[str, Any] = {"do_sample": False, "verbose": False, "stop_at_eos": False}
    assert torch.equal(model.generate(prompt, max_new_tokens=4, **options), expected)
    seen, grads = [], []
    with model.hooks(
        fwd_hooks=[("blocks.1.mlp.hook_in", lambda value, hook: seen.append(hook.name))],
        bwd_hooks=[("blocks.1.mlp.hook_out", lambda grad, hook: grads.append(grad.clone()))],
    ):
        model(IDS).square().sum().backward()
    assert seen == ["blocks.1.mlp.hook_in"]
    parameter = Layer(native, "llama", 1).mlp.down_proj.weight
    got = parameter.grad.clone()
    native.zero_grad()
    added: list[Tensor] = []

    def halve(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output.retain_grad()
        added.append(output)
        return output * 0.5

    handles = [Layer(native, "llama", i).mlp.register_forward_hook(halve) for i in range(2)]
    native(IDS).logits.square().sum().backward()
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(got, parameter.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads[0], added[1].grad, rtol=1e-5, atol=1e-5)
    assert not model.blocks[1].mlp.hook_in.fwd_hooks
    assert not model.blocks[1].mlp.hook_out.bwd_hooks


def test_the_old_module_runs_alone_and_its_points_fire() -> None:
    native, model = opened("gpt2")
    old = model.blocks[0].mlp
    model.blocks[0].mlp = Wrapper(old, 0.5)
    model.setup()
    x = torch.randn(2, 3, model.cfg.d_model)
    fired: list[str] = []
    with model.hooks([("blocks.0.mlp.old.hook_pre", lambda _, hook: fired.append(hook.name))]):
        found = old(x)
    assert torch.equal(found, Layer(native, "gpt2", 0).mlp(x))
    assert fired == ["blocks.0.mlp.old.hook_pre"]
    assert torch.equal(model.blocks[0].mlp(x), found * 0.5)
    layer = model.blocks[1]
    model.blocks[1] = Wrapper(layer, 0.5)
    lens = lensbridge.load(native)
    assert torch.equal(layer(x), lens.blocks[1](x))


def test_modules_that_do_not_call_the_old_one() -> None:
    native, model = opened("llama")

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    class NoAttention(nn.Module):
        def forward(self, query_input: Tensor, **_: Any) -> Tensor:
            return torch.zeros_like(query_input)

    model.blocks[0].mlp = Zero()
    zeroed = with_native_output(native, Layer(native, "llama", 0).mlp, torch.zeros_like)
    assert torch.equal(model(IDS), zeroed)
    _, cache = model.run_with_cache(IDS)
    assert "blocks.0.mlp.hook_pre" not in model.hook_dict
    assert "blocks.0.mlp.hook_pre" not in cache
    with pytest.raises(HookError, match="while something else stands in its place"):
        model.add_hook("blocks.0.mlp.hook_pre", print)
    del model.blocks[0].mlp
    model.blocks[0].attn = NoAttention()
    zeroed = with_native_output(native, Layer(native, "llama", 0).attn, torch.zeros_like)
    assert torch.equal(model(IDS), zeroed)
    with pytest.raises(HookError, match="use_past_kv_cache=False"):
        model.generate(IDS, max_new_tokens=2, verbose=False, do_sample=False, stop_at_eos=False)
    model.blocks[0] = nn.Identity()
    _, cache = model.run_with_cache(IDS)
    assert torch.equal(cache["blocks.1.hook_resid_pre"], native.get_input_embeddings()(IDS))


def test_attention_is_called_as_transformer_lens_calls_it() -> None:
    _, model = opened("qwen2")
    old, given = model.blocks[1].attn, {}

    class Attention(nn.Module):
        def forward(
            self, query_input: Tensor, key_input: Tensor, value_input: Tensor,
            past_kv_cache_entry: Any = None, attention_mask: Tensor | None = None,
        ) -> Tensor:  # fmt: skip
            given.update(q=query_input, k=key_input, v=value_input, mask=attention_mask)
            return old(query_input, key_input, value_input)  # type: ignore[no-any-return]

    model.blocks[1].attn = Attention()
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    base = model.lens.hf_model(IDS, attention_mask=mask).logits
    assert torch.equal(model(IDS, attention_mask=mask)[1], base[1])
    assert torch.equal(given["mask"], mask)
    assert given["q"] is given["k"] is given["v"]

    class Mixed(nn.Module):
        def forward(self, query_input: Tensor, **_: Any) -> Tensor:
            return old(query_input, query_input * 2, query_input)  # type: ignore[no-any-return]

    model.blocks[1].attn = Mixed()
    with pytest.raises(InputError, match="hook_k_input"):
        model(IDS)


@pytest.mark.parametrize("name", ["hook_embed", "blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"])
def test_a_point_is_replaced(name: str) -> None:
    """The value goes through the module; the old point goes with its functions, and comes back."""
    _, model = opened("gpt2")
    base = model(IDS)
    old = get(model, name)
    old.add_hook(lambda value, hook: value * 3)
    tripled = model(IDS)

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hook_inner = HookPoint()

        def forward(self, value: Tensor) -> Tensor:
            return self.hook_inner(value) / 2  # type: ignore[no-any-return]

    put(model, name, Half())
    with model.hooks():
        assert torch.equal(model.hf_model(IDS).logits, base)
    assert torch.equal(model.hf_model(IDS).logits, base)
    lens = lensbridge.load(model.hf_model)
    halved = lens.run_with_hooks(IDS, fwd_hooks=[(name, lambda value, hook: value / 2)])
    got, cache = model.run_with_cache(IDS)
    assert torch.equal(got, halved)
    assert name not in cache
    assert torch.equal(cache[f"{name}.hook_inner"], lens.run_with_cache(IDS, name)[1][name])
    point = HookPoint()
    put(model, name, point)
    assert torch.equal(model(IDS), base)
    assert get(model, name) is point
    assert model.hook_dict[name] is point
    assert point.name == name
    assert torch.equal(model.run_with_hooks(IDS, fwd_hooks=[(name, lambda v, hook: v / 2)]), halved)
    point.add_hook(lambda value, hook: value / 2)
    assert torch.equal(model.run_with_cache(IDS, names_filter=name)[1][name],
                       lens.run_with_cache(IDS, name)[1][name] / 2)  # fmt: skip
    put(model, name, old)
    assert torch.equal(model(IDS), tripled)
    model.reset_hooks()
    assert torch.equal(model(IDS), base)


def test_a_point_inside_its_own_wrapper() -> None:
    _, model = opened("gpt2")
    old = model.blocks[0].hook_mlp_out

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = old

        def forward(self, value: Tensor) -> Tensor:
            return self.inner(value)  # type: ignore[no-any-return]

    model.blocks[0].hook_mlp_out = Around()
    lens, outside = lensbridge.load(model.hf_model), "blocks.0.hook_mlp_out"
    hook = (outside, lambda value, hook: value * 0)
    expected, base = lens.run_with_hooks(IDS, fwd_hooks=[hook]), model(IDS)
    for name in (outside, f"{outside}.inner"):
        zeroed = model.run_with_hooks(IDS, fwd_hooks=[(name, lambda value, hook: value * 0)])
        assert torch.equal(zeroed, expected)
        value = model.run_with_cache(IDS)[1][name]
        assert torch.equal(value, lens.run_with_cache(IDS)[1][outside])
        assert old.name == name
        model.setup()
    assert torch.equal(model(IDS), base)
    assert not old.fwd_hooks


def test_forward_of_a_part_is_shadowed_and_given_back() -> None:
    """What SAELens does: a point of its own in front of the MLP's own forward."""
    _, model = opened("gpt2")
    base = model(IDS)
    mlp = model.blocks[0].mlp
    mlp.hook_in = HookPoint()
    original = mlp.forward
    mlp.forward = lambda x: original(mlp.hook_in(x))
    model.setup()
    names = ["blocks.0.mlp.hook_in", "blocks.0.ln2.hook_out", "blocks.0.mlp.hook_pre"]
    got, cache = model.run_with_cache(IDS, names_filter=names)
    assert torch.equal(got, base)
    assert torch.equal(cache["blocks.0.mlp.hook_in"], cache["blocks.0.ln2.hook_out"])
    assert "blocks.0.mlp.hook_pre" in cache
    assert isinstance(mlp, nn.Module)
    name = "blocks.0.mlp.hook_in"
    edited = model.run_with_hooks(IDS, fwd_hooks=[(name, lambda value, hook: value * 0)])
    lens = lensbridge.load(model.hf_model)
    hook = ("blocks.0.ln2.hook_out", lambda value, hook: value * 0)
    assert torch.equal(edited, lens.run_with_hooks(IDS, fwd_hooks=[hook]))
    mlp.forward = original
    assert torch.equal(model(IDS), base)
    assert not model.lens.engine.replaced


def test_pytorch_hooks_on_a_part_act_in_its_runs() -> None:
    native, model = opened("gpt2")
    handle = model.blocks[0].mlp.register_forward_hook(lambda module, args, out: out * 0)
    zeroed = with_native_output(native, Layer(native, "gpt2", 0).mlp, torch.zeros_like)
    assert torch.equal(model(IDS), zeroed)
    handle.remove()
    assert torch.equal(model(IDS), native(IDS).logits)
    with pytest.raises(HookError, match="add_hook"):
        model.blocks[0].hook_mlp_out.register_forward_hook(lambda module, args, out: out * 0)


def test_parameters_states_copies_and_ties() -> None:
    """Modules of the user's have their parameters beside the model's; tied weights stay tied."""
    native, model = opened("gpt2")
    own = sum(parameter.numel() for parameter in native.parameters())
    names = list(model.state_dict())

    class Learned(Wrapper):
        def __init__(self, old: nn.Module) -> None:
            super().__init__(old)
            self.gain = nn.Parameter(torch.full((), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.old(x) * self.gain  # type: ignore[no-any-return]

    model.blocks[0].mlp = Learned(model.blocks[0].mlp)
    model.unembed = Wrapper(model.unembed)
    assert model.n_params_total == own + 1
    assert set(model.state_dict()) == {*names, "blocks.0.mlp.gain"}
    assert dict(model.named_parameters())["blocks.0.mlp.gain"] is model.blocks[0].mlp.gain
    model(IDS).sum().backward()
    assert model.blocks[0].mlp.gain.grad is not None
    tied = native.get_output_embeddings().weight is native.get_input_embeddings().weight
    assert tied
    assert torch.equal(model.unembed.old.W_U, model.W_E.T)
    before = model(IDS)
    twin = deepcopy(model)
    assert torch.equal(twin(IDS), before)
    with torch.no_grad():
        twin.blocks[0].mlp.gain.zero_()
        twin.blocks[0].mlp.old.W_in.zero_()
    assert torch.equal(model(IDS), before)
    assert not torch.equal(twin(IDS), before)
    state = {**model.state_dict(), "blocks.0.mlp.gain": torch.tensor(1.0)}
    model.load_state_dict(state)
    assert torch.equal(model(IDS), native(IDS).logits)


def tiny(config: type, model: type, **more: Any) -> Any:
    sizes = {
        "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 61,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    return HookedTransformer.of(lensbridge.load(model(config(**{**sizes, **more})).eval()))


def test_places_that_cannot_be_replaced_say_why() -> None:
    wide = {"intermediate_size": 40, "num_key_value_heads": 2}
    opt = tiny(OPTConfig, OPTForCausalLM, ffn_dim=40, word_embed_proj_dim=24)
    bloom = tiny(BloomConfig, BloomForCausalLM)
    granite = tiny(GraniteConfig, GraniteForCausalLM, residual_multiplier=0.5, **wide)
    gpt2 = opened("gpt2")[1]
    for model, path, reason in (
        (opt, "blocks.0.mlp", "the layer itself"),
        (bloom, "blocks.0.mlp", "more than one value"),
        (bloom, "blocks.0.attn", "adds the stream"),
        (granite, "blocks.0.attn", "multiplies"),
        (gpt2, "pos_embed", "hook_pos_embed"),
    ):
        with pytest.raises(HookError, match=f"(?s){path} cannot be replaced.*{reason}"):
            put(model, path, nn.Identity())
        assert not model.lens.engine.replaced
    with pytest.raises(HookError, match="one by one"):
        gpt2.blocks = nn.ModuleList()
    with pytest.raises(HookError, match="is a weight"):
        gpt2.blocks[0].mlp.W_in = nn.Identity()
    with pytest.raises(HookError, match="torch module"):
        gpt2.blocks[0].mlp = torch.relu
    with pytest.raises(HookError, match="torch module"):
        gpt2.blocks[0].mlp.act_fn = "relu"
    with pytest.raises(WeightError, match="no weight"):
        gpt2.blocks[0].attn.nothing = torch.ones(1)


def test_what_stands_there_has_to_return_a_tensor() -> None:
    _, model = opened("gpt2")

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    model.blocks[0].mlp = Wrong()
    with pytest.raises(EditError, match=r"blocks\.0\.mlp returned str"):
        model(IDS)


def test_norms_behind_the_branches() -> None:
    wide = {"intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 6}
    model = tiny(Gemma2Config, Gemma2ForCausalLM, **wide)
    base = model(IDS)
    for block in model.blocks:
        block.mlp, block.ln2_post = Wrapper(block.mlp), Wrapper(block.ln2_post)
    got, cache = model.run_with_cache(IDS)
    assert torch.equal(got, base)
    assert torch.equal(cache["blocks.1.ln2_post.hook_out"], cache["blocks.1.hook_mlp_out"])
    assert torch.equal(cache["blocks.1.ln2_post.hook_in"], cache["blocks.1.mlp.hook_out"])


def test_other_threads_and_other_lenses_run_the_native_model() -> None:
    from threading import Thread

    native, model = opened("gpt2")
    other, bare = lensbridge.load(native), native(IDS).logits
    found: list[Tensor] = []

    class Watching(Wrapper):
        def forward(self, x: Tensor) -> Tensor:
            for run in (lambda: native(IDS).logits, lambda: other(IDS)):
                thread = Thread(target=lambda run=run: found.append(run()))
                thread.start()
                thread.join()
            return super().forward(x)

    model.blocks[1].mlp = Watching(model.blocks[1].mlp, 0.0)
    model(IDS)
    assert len(found) == 2
    assert all(torch.equal(one, bare) for one in found)


def test_a_subclass_is_made_by_its_own_init() -> None:
    class Mine(HookedTransformer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.counted = len(self.blocks)
            self.inner = HookedTransformer.from_pretrained("demo")

    model = Mine.from_pretrained("demo")
    assert model.counted == model.cfg.n_layers
    assert type(model.inner) is HookedTransformer
    assert model.inner.lens is not model.lens
    assert torch.equal(model("The Eiffel Tower"), model.inner("The Eiffel Tower"))

"""Any PyTorch module: its own modules as points, against the bare module under PyTorch's hooks."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from module_zoo import Encoder, Recurrent, ResNet, Superposition, UNet, made
from plain_models import nano
from test_plain_modules import NANO
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import (
    AbsentPointError,
    HookNeverFiredError,
    InputError,
    LensbridgeError,
    NoDescriptionError,
    UnknownPointError,
)
from lensbridge.interventions import Add, Apply, Mean, Replace, Swap, Zero
from lensbridge.modules import ModuleCache, ModuleLens
from lensbridge.patching import Cell

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OTHERS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
IDS = torch.tensor([[1, 5, 3, 2], [4, 2, 2, 7]])
VECTORS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
STEPS = torch.tensor([1, 5])

ZOO: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "resnet": (ResNet, IMAGES),
    "lstm": (Recurrent, IDS),
    "unet": (UNet, (IMAGES, STEPS)),
    "toy": (Superposition, torch.rand(3, 5)),
    "encoder": (Encoder, VECTORS),
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), torch.rand(3, 4)),
}
every = pytest.mark.parametrize(("make", "given"), ZOO.values(), ids=ZOO)


@pytest.fixture(scope="module")
def net() -> Any:
    return made(ResNet())


@pytest.fixture
def model(net: Any) -> Any:
    return lensbridge.load(net)


def call(module: nn.Module, given: Any) -> Any:
    return module(*given) if isinstance(given, tuple) else module(given)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    several = isinstance(value, tuple | list | dict)
    return [one for item in items for one in tensors(item)] if several else []


def natively(module: nn.Module, given: Any) -> tuple[Any, dict[str, list[Tensor]]]:
    """What a module returns, and the first tensor in and out of every call of every module."""
    found: dict[str, list[Tensor]] = {}
    handles = []

    def keep(name: str, value: Any) -> None:
        first = tensors(value)[:1]
        found.setdefault(name, []).extend(one.detach().clone() for one in first)

    for path, one in module.named_modules():
        at = f"{path}." if path else ""
        before = lambda m, args, kwargs, at=at: keep(f"{at}hook_in", [*args, *kwargs.values()])  # noqa: E731
        after = lambda m, args, out, at=at: keep(f"{at}hook_out", out)  # noqa: E731
        handles += [
            one.register_forward_pre_hook(before, with_kwargs=True),
            one.register_forward_hook(after),
        ]
    output = call(module, given)
    for handle in handles:
        handle.remove()
    return output, {name: values for name, values in found.items() if values}


def hooked(module: nn.Module, path: str, edit: Callable[[Tensor], Tensor], given: Any) -> Any:
    """What a module returns with one output edited by a PyTorch hook."""
    handle = module.get_submodule(path).register_forward_hook(lambda m, a, out: edit(out))
    output = call(module, given)
    handle.remove()
    return output


def is_clean(module: nn.Module) -> bool:
    every = list(module.modules())
    hooks = any(one._forward_hooks or one._forward_pre_hooks for one in every)
    return not hooks and not any("forward" in vars(one) for one in every)


# --- reading -------------------------------------------------------------------------------------


@every
def test_every_input_and_output_of_every_call_is_read(make: Any, given: Any) -> None:
    bare = made(make())
    wanted, native = natively(bare, given)
    model: Any = lensbridge.load(bare)
    assert isinstance(model, ModuleLens)
    assert model.hf_model is bare
    output, cache = model.run_with_cache(given)
    assert type(output) is type(wanted)
    for found, one in zip(tensors(output), tensors(wanted), strict=True):
        assert torch.equal(found, one)
    for name, values in native.items():
        found = cache.calls(name)
        assert len(found) == len(values), name
        assert all(map(torch.equal, found, values)), name
    assert sum(map(len, native.values())) == len(cache)
    assert is_clean(bare)


def test_a_module_that_is_called_twice_has_a_value_for_each_call(model: Any, net: Any) -> None:
    _, native = natively(net, IMAGES)
    twice = "layer1.0.relu.hook_out"
    _, cache = model.run_with_cache(IMAGES, twice)
    assert list(cache) == [twice, "layer1.0.relu@1.hook_out"]
    _, second = model.run_with_cache(IMAGES, "layer1.0.relu@1.hook_out")
    assert list(second) == ["layer1.0.relu@1.hook_out"]
    assert torch.equal(second["layer1.0.relu@1.hook_out"], native[twice][1])
    with pytest.raises(HookNeverFiredError, match=r"relu@2\.hook_out"):
        model.run_with_cache(IMAGES, "layer1.0.relu@2.hook_out")


def test_other_tensors_of_tuples_mappings_and_arguments_have_names() -> None:
    bare = made(Recurrent())
    model = lensbridge.load(bare)
    names = ["lstm.hook_out.1.0", "lstm.hook_out.1.1", "lstm.hook_out.0"]
    _, cache = model.run_with_cache(IDS, names)
    out, (hidden, cell) = bare.lstm(bare.table(IDS))
    for name, value in zip(names, (hidden, cell, out), strict=True):
        assert torch.equal(cache[name], value)
    with pytest.raises(HookNeverFiredError, match=r"no such tensor; there are 0, 1\.0, 1\.1"):
        model.run_with_cache(IDS, "lstm.hook_out.7")

    encoder = made(Encoder())
    model = lensbridge.load(encoder)
    _, cache = model.run_with_cache(
        VECTORS, ["hook_out.scores", "layers.layers.0.self_attn.hook_in.key"]
    )
    assert torch.equal(cache["hook_out.scores"], encoder(VECTORS)["scores"])
    assert torch.equal(cache["layers.layers.0.self_attn.hook_in.key"], VECTORS)
    with pytest.raises(HookNeverFiredError, match="Note gave no tensor"):
        model.run_with_cache(VECTORS, "note.hook_out")
    with pytest.raises(HookNeverFiredError, match=r"out_proj.*without calling a module"):
        model.run_with_cache(VECTORS, "layers.layers.0.self_attn.out_proj")


def test_fused_transformer_layers_are_read_inside_without_gradients() -> None:
    bare = made(Encoder())
    model = lensbridge.load(bare)
    with torch.no_grad():
        output, cache = model.run_with_cache(VECTORS, "layers.layers.1.linear1")
    wanted, native = natively(bare, VECTORS)
    torch.testing.assert_close(output["scores"], wanted["scores"])
    torch.testing.assert_close(
        cache["layers.layers.1.linear1"], native["layers.layers.1.linear1.hook_out"][0]
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_inputs_are_positional_arguments_keywords_or_both() -> None:
    bare = made(UNet())
    model: Any = lensbridge.load(bare)
    wanted = bare(IMAGES, STEPS, 2.0).sample
    for given, keywords in (
        ((IMAGES, STEPS, 2.0), {}),
        ((IMAGES, STEPS), {"scale": 2.0}),
        (IMAGES, {"timestep": STEPS, "scale": 2.0}),
        ({"sample": IMAGES, "timestep": STEPS, "scale": 2.0}, {}),
    ):
        output, cache = model.run_with_cache(given, "mid.resnet", **keywords)
        assert torch.equal(output.sample, wanted)
        assert list(cache) == ["mid.resnet.hook_out"]
    assert torch.equal(model(IMAGES, STEPS, scale=2.0).sample, wanted)
    with pytest.raises(TypeError, match=r"unexpected keyword 'scal' for UNet.*'scale'"):
        model(IMAGES, STEPS, scal=2.0)
    with pytest.raises(TypeError, match="in the input and beside it"):
        model.run_with_cache({"sample": IMAGES, "timestep": STEPS}, timestep=STEPS)
    _, cache = model.run_with_cache((IMAGES, STEPS, -1.0), "mid.resnet.hook_in")
    torch.testing.assert_close(
        cache["mid.resnet.hook_in"],
        torch.relu(bare.down(IMAGES)) + bare.time(STEPS[:, None].float())[:, :, None, None],
    )


# --- editing -------------------------------------------------------------------------------------


def test_hooks_edit_as_pytorch_hooks_do(model: Any, net: Any) -> None:
    wanted = hooked(net, "layer1.0", lambda out: out * 2, IMAGES)
    double = [("layer1.0", lambda value, hook: value * 2)]
    in_place = [("layer1.0.hook_out", lambda value, hook: value.mul_(2) and None)]
    assert torch.equal(model.run_with_hooks(IMAGES, fwd_hooks=double), wanted)
    with model.hooks(fwd_hooks=double):
        assert torch.equal(net(IMAGES), wanted)
    handle = model.add_hook("layer1.0", lambda value, hook: value * 2)
    assert torch.equal(model(IMAGES), wanted)
    handle.remove()
    assert is_clean(net)

    def halve(value: Tensor, hook: Any) -> None:
        value.mul_(2)

    assert torch.equal(model.run_with_hooks(IMAGES, fwd_hooks=[(in_place[0][0], halve)]), wanted)
    given = [("layer1.1.hook_in", lambda value, hook: value * 2)]
    assert torch.equal(model.run_with_hooks(IMAGES, fwd_hooks=given), wanted)


def test_an_edit_of_one_call_leaves_the_other(model: Any, net: Any) -> None:
    seen = []

    def second(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        seen.append(1)
        return out * 3 if len(seen) == 2 else None

    handle = net.layer1[0].relu.register_forward_hook(second)
    wanted = net(IMAGES)
    handle.remove()
    edit = [("layer1.0.relu@1.hook_out", lambda value, hook: value * 3)]
    assert torch.equal(model.run_with_hooks(IMAGES, fwd_hooks=edit), wanted)


def test_what_a_hook_returns_is_not_written_to(model: Any) -> None:
    _, cache = model.run_with_cache(OTHERS, "layer1.0.bn2")
    kept = cache["layer1.0.bn2"].clone()
    model.run_with_hooks(IMAGES, fwd_hooks=[("layer1.0.bn2", lambda value, hook: cache[hook.name])])
    assert torch.equal(cache["layer1.0.bn2"], kept)  # the block adds to it in place


def test_interventions_know_channels_positions_and_features(model: Any, net: Any) -> None:
    def without(out: Tensor) -> Tensor:
        out = out.clone()
        out[:, 2] = 0
        return out

    wanted = hooked(net, "conv1", without, IMAGES)
    assert torch.equal(model.run_with_interventions(IMAGES, Zero("conv1", neurons=2)), wanted)
    with model.intervene([Zero("conv1.hook_out", neurons=[2])]):
        assert torch.equal(net(IMAGES), wanted)

    bare = made(Recurrent())
    lens = lensbridge.load(bare)

    def at_one(out: Any) -> Any:
        changed = out[0].clone()
        changed[:, 1, [0, 3]] += 2
        return changed, out[1]

    wanted = hooked(bare, "lstm", at_one, IDS)
    add = Add("lstm", torch.full((2,), 2.0), positions=1, neurons=[0, 3])
    assert torch.equal(lens.run_with_interventions(IDS, add), wanted)
    last = hooked(
        bare, "lstm", lambda out: (out[0] * torch.tensor([1, 1, 1, 0])[:, None], out[1]), IDS
    )
    assert torch.equal(lens.run_with_interventions(IDS, Zero("lstm", positions="last")), last)
    wanted = hooked(bare, "head", lambda out: out.clamp(max=0.1), IDS)
    own = Apply("head", lambda value: value.clamp(max=0.1))
    assert torch.equal(lens.run_with_interventions(IDS, own), wanted)


def test_interventions_take_values_of_another_input(model: Any, net: Any) -> None:
    _, cache = model.run_with_cache(OTHERS, ["layer1", "layer1.0.relu"])
    wanted = net(OTHERS)
    assert torch.equal(
        model.run_with_interventions(IMAGES, Replace("layer1", cache["layer1"])), wanted
    )
    assert torch.equal(model.run_with_interventions(IMAGES, Swap("layer1", cache)), wanted)
    assert torch.equal(model.interchange(IMAGES, OTHERS, "layer1"), wanted)
    theirs = {name: values[0] for name, values in natively(net, OTHERS)[1].items()}
    both = model.run_with_interventions(IMAGES, Swap("layer1.0.relu", cache))
    block = theirs["layer1.0.hook_out"]
    assert torch.equal(both, hooked(net, "layer1.0", lambda out: block, IMAGES))
    channel = model.interchange(IMAGES, OTHERS, "conv1", neurons=[1])
    conv = theirs["conv1.hook_out"]
    mixed = hooked(
        net, "conv1", lambda out: torch.cat([out[:, :1], conv[:, 1:2], out[:, 2:]], 1), IMAGES
    )
    assert torch.equal(channel, mixed)


def test_axes_that_no_class_tells_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"no axis counts them \(its axes are b u y w\)"):
        model.run_with_interventions(IMAGES, Zero("conv1", positions=1))
    second = lensbridge.load(made(Encoder(batch_first=False)))
    with pytest.raises(InputError, match="no axis counts them"):
        second.run_with_interventions(VECTORS, Zero("layers.layers.0.linear1", positions=1))
    rows = lensbridge.load(made(nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU())))
    with pytest.raises(InputError, match="not known which axis counts features or channels"):
        rows.run_with_interventions(torch.rand(2, 3, 5), Zero("1", neurons=1))
    found = rows.run_with_interventions(torch.rand(2, 3, 5), Zero("0", neurons=1, positions=2))
    assert (found[:, 1, 2] == 0).all()
    assert (found != 0).any()


# --- sweeps and gradients ------------------------------------------------------------------------


def test_a_sweep_runs_each_cell_as_a_hook_would(model: Any, net: Any) -> None:
    _, cache = model.run_with_cache(OTHERS)
    cells = {
        "zero": Cell("conv1", (slice(None), 2), 0.0),
        "clean": ("layer1.0", (slice(None), 1), cache),
        "channel": Zero("conv1", neurons=2),
        "window": [Zero("conv1", neurons=2), Swap("layer1.0", cache, neurons=1)],
    }

    def zero(out: Tensor) -> Tensor:
        out = out.clone()
        out[:, 2] = 0
        return out

    def clean(out: Tensor) -> Tensor:
        out = out.clone()
        out[:, 1] = cache["layer1.0"][:, 1]
        return out

    handle = net.conv1.register_forward_hook(lambda m, a, out: zero(out))
    both = hooked(net, "layer1.0", clean, IMAGES)
    handle.remove()
    zeroed = hooked(net, "conv1", zero, IMAGES)
    wanted = [zeroed, hooked(net, "layer1.0", clean, IMAGES), zeroed, both]
    metrics = {"first": lambda out: out[0, 3], "mean": lambda out: out.mean()}
    found = model.sweep(IMAGES, cells, metrics, baseline=True)
    for i, out in enumerate(wanted):
        assert torch.equal(found.values[:, i], torch.stack([out[0, 3], out.mean()]))
    assert torch.equal(found.baseline[0], net(IMAGES)[0, 3])
    each = model.sweep(IMAGES, [Zero("conv1")], lambda out: out[:, 0], reduce="none")
    assert each.values.shape == (1, 2)
    assert is_clean(net)


def test_a_sweep_measures_the_first_tensor_of_an_output() -> None:
    bare = made(UNet())
    model = lensbridge.load(bare)
    found = model.sweep((IMAGES, STEPS), [Zero("mid.resnet")], lambda sample: sample[1].sum())
    wanted = hooked(bare, "mid.resnet", torch.zeros_like, (IMAGES, STEPS)).sample[1].sum()
    assert torch.equal(found.values[0], wanted)


def test_gradients_are_autograds_also_where_modules_write_in_place(model: Any, net: Any) -> None:
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            kept[path] = out
            return out.clone()

        return net.get_submodule(path).register_forward_hook(hook)

    paths = ["bn1", "layer1.0.bn2", "fc"]
    handles = [keep(path) for path in paths]
    value = net(IMAGES)[:, 1].sum()
    for handle in handles:
        handle.remove()
    wanted = torch.autograd.grad(value, list(kept.values()))
    found = model.gradients(IMAGES, paths, of=lambda out: out[:, 1].sum(), return_activations=True)
    assert torch.equal(found.value, value)
    for path, grad in zip(kept, wanted, strict=True):
        assert torch.equal(found.gradients[path], grad), path
    pixels = IMAGES.clone().requires_grad_()
    (grad,) = torch.autograd.grad(net(pixels)[:, 1].sum(), pixels)
    whole = model.gradients(IMAGES, None, of=lambda out: out[:, 1].sum()).gradients
    assert torch.equal(whole["hook_in"], grad)
    assert "layer1.0.relu@1.hook_out" in whole
    assert all(parameter.grad is None for parameter in net.parameters())

    def channel(cache: Any) -> Tensor:
        return cache["layer1.0"][0, 1].sum()

    between = model.gradients(IMAGES, "conv1", of=channel, at="layer1.0").gradients["conv1"]
    assert bool(between[0].any())
    assert not bool(between[1].any())
    both = {"a": lambda out: out[0, 1], "b": lambda out: out[1, 2] * 2}
    several = model.gradients(IMAGES, "conv1", of=both)
    for name, of in both.items():
        alone = model.gradients(IMAGES, "conv1", of=of)
        assert torch.equal(several[name].gradients["conv1"], alone.gradients["conv1"])
        assert torch.equal(several[name].value, alone.value)
    with pytest.raises(InputError, match="of is a function"):
        model.gradients(IMAGES, "conv1")


def test_activations_times_gradients(model: Any) -> None:
    found = model.activation_x_gradient(IMAGES, "fc", of=lambda out: out[:, 1].sum())
    wanted = torch.zeros(2, 5)
    wanted[:, 1] = model(IMAGES)[:, 1]
    assert torch.equal(found["fc"], wanted)


def test_gradients_of_outputs_that_are_no_tensor() -> None:
    bare = made(Encoder())
    model = lensbridge.load(bare)
    found = model.gradients(VECTORS, "hook_in", of=lambda out: out["scores"].sum())
    leaf = VECTORS.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(bare(leaf)["scores"].sum(), leaf)
    assert torch.equal(found.gradients["hook_in"], wanted)
    unet = made(UNet())
    found = lensbridge.load(unet).gradients((IMAGES, STEPS), "down", of=lambda out: out[0].sum())
    assert found.gradients["down"].shape == (2, 4, 4, 4)


# --- what there is not, and what stays -----------------------------------------------------------


def test_words_of_transformers_say_what_there_is_instead(model: Any) -> None:
    for name in ("W_Q", "blocks", "cfg", "generate", "logit_lens", "unembed", "plan", "add_sae"):
        assert not hasattr(model, name)
        assert name not in dir(model)
        with pytest.raises(
            NoDescriptionError, match=f"no {name} here: ResNet is opened as a plain"
        ):
            getattr(model, name)
    for name in ("blocks.0.attn.hook_q", "resid_post", ("q", 1)):
        with pytest.raises(AbsentPointError, match="ResNet is opened as a plain module"):
            model.run_with_cache(IMAGES, name)
    with pytest.raises(UnknownPointError, match=r"Did you mean 'conv1.hook_out'.*between them"):
        model.run_with_cache(IMAGES, "conv.hook_out")
    with pytest.raises(UnknownPointError, match="No point matches"):
        model.run_with_cache(IMAGES, "conv7.*")
    with pytest.raises(InputError, match="return_type='loss'"):
        model.run_with_cache(IMAGES, return_type="loss")
    _, cache = model.run_with_cache(IMAGES, "conv1")
    with pytest.raises(NoDescriptionError, match="cache of a plain module has no decompose_resid"):
        _ = cache.decompose_resid
    with pytest.raises(LensbridgeError):
        model.W_Q = None
    with pytest.raises(AttributeError, match=r"model\.hf_model\.conv1"):
        _ = model.conv1


def test_text_is_made_ids_if_there_is_a_tokenizer() -> None:
    tokenizer = lensbridge.load("demo").tokenizer
    bare = made(Recurrent(len(tokenizer)))
    model: Any = lensbridge.load(bare, tokenizer=tokenizer)
    ids = model.to_tokens("The Eiffel Tower")
    output, cache = model.run_with_cache("The Eiffel Tower", "lstm.output")
    assert torch.equal(output, bare(ids))
    assert torch.equal(cache["lstm"], bare.lstm(bare.table(ids))[0])
    assert torch.equal(model("The Eiffel Tower"), bare(ids))
    with pytest.raises(InputError, match="no argument attention_mask"):
        model(["The Eiffel Tower", "Paris"])


def test_names_globs_and_what_a_point_is(model: Any) -> None:
    assert model.hook_names[:3] == ["hook_in", "conv1.hook_in", "conv1.hook_out"]
    assert model.hook_names[-1] == "hook_out"
    _, cache = model.run_with_cache(IMAGES, ["layer1.*.conv?.hook_out", "fc"])
    assert list(cache) == [
        *(f"layer1.{i}.conv{j}.hook_out" for i in (0, 1) for j in (1, 2)),
        "fc.hook_out",
    ]
    assert cache.axes("fc") == "b u"
    assert cache.axes("layer1.0.conv1") == "b u y w"
    one = model.run_with_cache(IMAGES[:1], "conv1", remove_batch_dim=True)[1]
    assert one["conv1"].shape == (6, 4, 4)
    for spelling in ("conv1", "conv1.output", "conv1.hook_out"):
        assert model.explain(spelling).name == "conv1.hook_out"
    assert model.explain("layer1.0.relu@1.input").name == "layer1.0.relu@1.hook_in"
    assert model.explain("output").name == "hook_out"
    told = str(model.explain("conv1"))
    assert "conv1 (Conv2d), output" in told
    assert "b u y w" in told
    assert repr(model) == "ModuleLens(ResNet, 22 modules, 44 points)"
    assert "cannot be opened: its forward raised RuntimeError" in model.why


def test_a_run_without_hooks_is_the_modules_own_call(model: Any, net: Any) -> None:
    assert model.engine.is_idle
    calls = []
    handle = net.register_forward_pre_hook(lambda module, args: calls.append(args))
    assert torch.equal(model(IMAGES), net(IMAGES))
    handle.remove()
    assert all(args[0] is IMAGES for args in calls)
    assert is_clean(net)


def test_replaced_modules_are_followed() -> None:
    bare = made(ResNet())
    model = lensbridge.load(bare)
    bare.fc = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    assert "fc.1.hook_out" in model.hook_names
    _, cache = model.run_with_cache(IMAGES, "fc.1")
    assert torch.equal(cache["fc.1"], bare(IMAGES))


def test_copies_and_pickles(model: Any, net: Any) -> None:
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.hf_model is not net
        assert torch.equal(other(IMAGES), net(IMAGES))
    _, cache = model.run_with_cache(IMAGES)
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again["conv1"], cache["conv1"])
    assert torch.equal(again.calls("layer1.0.relu")[1], cache.calls("layer1.0.relu")[1])


def test_caches_are_saved_and_read(model: Any, tmp_path: Path) -> None:
    _, cache = model.run_with_cache(IMAGES)
    cache.save(tmp_path / "run.safetensors")
    for lens in (None, model):
        again = ModuleCache.load(tmp_path / "run.safetensors", lens)
        assert list(again) == list(cache)
        assert all(torch.equal(again[name], cache[name]) for name in cache)
        assert len(again.calls("layer1.0.relu")) == 2
    assert again.axes("conv1") == "b u y w"
    assert repr(again).startswith("ModuleCache(48 activations")


def test_modules_without_weights_yet_are_left_to_their_first_run() -> None:
    bare = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    model: Any = lensbridge.load(bare)
    assert "first run" in model.why
    assert model(torch.ones(2, 6)).shape == (2, 3)
    assert bare[0].in_features == 6


def test_a_module_that_could_be_derived_is_read_by_its_modules_if_that_is_asked_for() -> None:
    bare = nano()
    model: Any = lensbridge.load(bare, derive=False)
    assert isinstance(model, ModuleLens)
    output, cache = model.run_with_cache((IDS, IDS), "transformer.h.1.mlp")
    _, native = natively(bare, (IDS, IDS))
    assert torch.equal(cache["transformer.h.1.mlp"], native["transformer.h.1.mlp.hook_out"][0])
    assert torch.equal(output[0], bare(IDS, IDS)[0])


def test_a_described_model_has_both_kinds_of_names() -> None:
    bare = nano()
    model: Any = lensbridge.load(bare, architecture=NANO)
    assert not isinstance(model, ModuleLens)
    _, native = natively(bare, (IDS, IDS))
    path = "transformer.h.1.mlp.c_fc"
    output, cache = model.run_with_cache(IDS, ["mlp_pre", f"{path}.hook_out"], targets=IDS)
    assert torch.equal(output, bare(IDS, IDS)[0])
    assert torch.equal(cache[f"{path}.hook_out"], native[f"{path}.hook_out"][0])
    assert torch.equal(cache[f"{path}.hook_out"], cache["mlp_pre", 1])
    assert cache.axes(f"{path}.hook_out") == "b p u"
    assert f"{path}.hook_out" not in model.hook_names
    wanted = hooked(bare, "transformer.h.1.mlp", torch.zeros_like, (IDS, IDS))[0]
    edit = [("transformer.h.1.mlp.hook_out", lambda value, hook: value * 0)]
    assert torch.equal(model.run_with_hooks(IDS, fwd_hooks=edit, targets=IDS), wanted)
    zero = Zero(f"{path}.hook_out", neurons=3, positions=2)
    by_name = model.run_with_interventions(IDS, Zero(("mlp_pre", 1), neurons=3, positions=2))
    assert torch.equal(model.run_with_interventions(IDS, zero), by_name)
    with pytest.raises(InputError, match="known once a run shows it"):
        copy.copy(model).run_with_interventions(IDS, zero)
    grads = model.gradients(IDS, f"{path}.hook_out", of=lambda out: out[:, -1, 3].sum())
    by_name = model.gradients(IDS, ("mlp_pre", 1), of=lambda out: out[:, -1, 3].sum())
    assert torch.equal(grads.gradients[f"{path}.hook_out"], by_name.gradients["mlp_pre", 1])
    with pytest.raises(UnknownPointError):
        model.run_with_cache(IDS, "transformer.h.7.mlp.hook_out")
    assert pickle.loads(pickle.dumps(cache))[f"{path}.hook_out"].shape == (2, 4, 96)
    assert is_clean(bare)


def test_names_of_the_field_come_before_those_of_modules() -> None:
    model: Any = lensbridge.load("demo")
    ids = model.to_tokens("The Eiffel Tower")
    _, cache = model.run_with_cache(ids, ["transformer.h.0.attn.hook_out", "attn_out"])
    assert torch.equal(cache["transformer.h.0.attn.hook_out"], cache["attn_out", 0])
    texts = ["The Eiffel Tower", "Paris"]
    name = "transformer.h.0.mlp.hook_out"
    last = model.run_with_cache(texts, name, pos_slice="last")[1]
    whole = model.run_with_cache(texts, ("mlp_out", 0), pos_slice="last")[1]
    assert torch.equal(last[name], whole["mlp_out", 0])


def test_means_over_examples(model: Any, net: Any) -> None:
    _, cache = model.run_with_cache(OTHERS, "conv1")
    wanted = hooked(
        net, "conv1", lambda out: cache["conv1"].mean(0, keepdim=True).expand_as(out), IMAGES
    )
    found = model.run_with_interventions(IMAGES, Mean("conv1", cache["conv1"]))
    torch.testing.assert_close(found, wanted)

"""Plain PyTorch modules: read as the module alone computes, with a description or without one."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from plain_models import (
    VOCABULARY,
    Lecture,
    NanoConfig,
    NanoGPT,
    from_scratch,
    lecture,
    nano,
    of_torch,
    seeded,
    small_llama,
)
from torch import Tensor, nn

import lensbridge
from lensbridge import patching
from lensbridge.derive import derive, derive_and_check
from lensbridge.errors import (
    ArchitectureMismatchError,
    InputError,
    LensbridgeError,
    LoadError,
    TokenizerMissingError,
    UnsupportedArchitectureError,
)
from lensbridge.modules import ModuleLens
from lensbridge.spec import (
    MLP,
    Architecture,
    Attention,
    Block,
    Dims,
    FusedQKV,
    GatedMLP,
    Mixer,
    Norms,
    SplitQKV,
)
from lensbridge.testing import conformance

pytestmark = pytest.mark.usefixtures("one_thread")

NANO = Architecture(
    name="nano",
    classes=("NanoGPT",),
    dims=Dims(layers="n_layer", d_model="n_embd", heads="n_head", context="block_size"),
    embed="transformer.wte",
    pos_embed="transformer.wpe",
    blocks="transformer.h",
    block=Block(
        norms=Norms(pre_attn="ln_1", pre_mlp="ln_2", eps=1e-5),
        attn=Attention("attn", qkv=FusedQKV("c_attn", layout="blocked"), out="c_proj"),
        mlp=MLP("mlp", up="c_fc", down="c_proj", act="gelu"),
    ),
    final_norm="transformer.ln_f",
    unembed="lm_head",
)
SMALL_LLAMA = Architecture(
    name="small",
    classes=("SmallLlama",),
    dims=Dims(
        layers="n_layers",
        d_model="dim",
        heads="n_heads",
        kv_heads="n_kv_heads",
        context="max_seq_len",
    ),
    embed="tok_embeddings",
    blocks="layers",
    block=Block(
        norms=Norms(pre_attn="attention_norm", pre_mlp="ffn_norm", kind="RMS"),
        attn=Attention("attention", qkv=SplitQKV("wq", "wk", "wv"), out="wo", rotary=True),
        mlp=GatedMLP("feed_forward", gate="w1", up="w3", down="w2", act="silu"),
    ),
    final_norm="norm",
    unembed="output",
)
LECTURE = Architecture(
    name="lecture",
    classes=("Lecture",),
    dims=Dims(layers=2, d_model=20, heads=4, vocab=VOCABULARY, context=16),
    embed="token_embedding_table",
    pos_embed="position_embedding_table",
    blocks="blocks",
    block=Block(
        norms=Norms(pre_attn="ln1", pre_mlp="ln2"),
        mixer=Mixer("sa"),
        mlp=MLP("ffwd", up="net.0", down="net.2", act="relu"),
    ),
    final_norm="ln_f",
    unembed="lm_head",
)


class Case(NamedTuple):
    """A module, its description, and where its logits and the inputs and outputs of layers are."""

    make: Callable[[], nn.Module]
    architecture: Architecture
    logits: Callable[[Any], Tensor]
    blocks: str
    read: dict[str, tuple[str, str]]


IN_NANO = {
    "blocks.{i}.hook_resid_pre": ("transformer.h.{i}", "input"),
    "blocks.{i}.hook_resid_post": ("transformer.h.{i}", "output"),
    "blocks.{i}.hook_attn_out": ("transformer.h.{i}.attn", "output"),
    "blocks.{i}.hook_mlp_out": ("transformer.h.{i}.mlp", "output"),
    "blocks.{i}.mlp.hook_pre": ("transformer.h.{i}.mlp.c_fc", "output"),
    "blocks.{i}.mlp.hook_post": ("transformer.h.{i}.mlp.c_proj", "input"),
    "hook_embed": ("transformer.wte", "output"),
    "hook_pos_embed": ("transformer.wpe", "output"),
    "ln_final.hook_out": ("transformer.ln_f", "output"),
    "hook_logits": ("lm_head", "output"),
}
CASES = {
    "nano": Case(nano, NANO, lambda out: out[0], "transformer.h", IN_NANO),
    "nano by hand": Case(lambda: nano(False), NANO, lambda out: out[0], "transformer.h", IN_NANO),
    "llama": Case(
        small_llama,
        SMALL_LLAMA,
        lambda out: out,
        "layers",
        {
            "blocks.{i}.hook_resid_pre": ("layers.{i}", "input"),
            "blocks.{i}.hook_attn_out": ("layers.{i}.attention", "output"),
            "blocks.{i}.mlp.hook_post": ("layers.{i}.feed_forward.w2", "input"),
            "hook_logits": ("output", "output"),
        },
    ),
    "lecture": Case(
        lecture,
        LECTURE,
        lambda out: out["scores"],
        "blocks",
        {
            "blocks.{i}.hook_resid_pre": ("blocks.{i}", "input"),
            "blocks.{i}.hook_mixer_out": ("blocks.{i}.sa", "output"),
            "blocks.{i}.mlp.hook_pre": ("blocks.{i}.ffwd.net.0", "output"),
            "hook_logits": ("lm_head", "output"),
        },
    ),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def ids(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def natively(module: nn.Module, paths: dict[str, tuple[str, str]], given: Tensor) -> Any:
    """What a module returns, and the values at paths, by PyTorch's hooks."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, (path, side) in paths.items():
        one = module.get_submodule(path)
        if side == "input":
            take = lambda m, args, name=name: found.update({name: args[0].detach().clone()})  # noqa: E731
            handles.append(one.register_forward_pre_hook(take))
        else:
            keep = lambda m, a, out, name=name: found.update({name: out.detach().clone()})  # noqa: E731
            handles.append(one.register_forward_hook(keep))
    with torch.no_grad():
        output = module(given)
    for handle in handles:
        handle.remove()
    return output, found


def shadows(module: nn.Module) -> int:
    """Hooks and replaced forwards on a module."""
    every = list(module.modules())
    hooks = sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in every)
    return hooks + sum("forward" in one.__dict__ for one in every)


# --- reading and editing -------------------------------------------------------------------------


@each
@pytest.mark.parametrize("described", [True, False], ids=["described", "derived"])
def test_every_value_and_the_logits_are_the_modules_own(case: Case, described: bool) -> None:
    bare = case.make()
    model = lensbridge.load(bare, architecture=case.architecture if described else None)
    places = {
        name.format(i=i): (path.format(i=i), side)
        for name, (path, side) in case.read.items()
        for i in range(len(bare.get_submodule(case.blocks)) if "{i}" in name else 1)
    }
    output, native = natively(bare, places, ids())
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids(), names_filter=model.hook_names)
        assert torch.equal(model(ids()), case.logits(output))
    assert torch.equal(logits, case.logits(output))
    for name, value in native.items():
        assert torch.equal(cache[name], value.expand_as(cache[name])), name
    assert model.hf_model is bare
    assert shadows(bare) == 0
    assert repr(model).startswith(f"LensModel({type(bare).__name__} ")


@each
def test_an_edit_is_the_same_edit_by_a_plain_hook(case: Case) -> None:
    bare = case.make()
    model = lensbridge.load(bare, architecture=case.architecture)
    block = bare.get_submodule(f"{case.blocks}.1")
    handle = block.register_forward_pre_hook(lambda m, args: (args[0] * 0.5, *args[1:]))
    with torch.no_grad():
        wanted = case.logits(bare(ids()))
    handle.remove()
    halved = [("blocks.1.hook_resid_pre", lambda value, hook: value * 0.5)]
    with torch.no_grad():
        assert torch.equal(model.run_with_hooks(ids(), fwd_hooks=halved), wanted)
        with model.hooks(fwd_hooks=halved):
            assert torch.equal(case.logits(bare(ids())), wanted)
    assert shadows(bare) == 0


@pytest.mark.parametrize("flash", [True, False], ids=["fused", "by hand"])
def test_scores_and_patterns_are_those_of_the_formula(flash: bool) -> None:
    bare = nano(flash)
    model = lensbridge.load(bare, architecture=NANO)
    with torch.no_grad():
        _, cache = model.run_with_cache(ids())
        q, k, v = (cache[letter, 1].transpose(1, 2) for letter in "qkv")
        scores = q @ k.mT / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), -torch.inf)
        torch.testing.assert_close(cache["attn_scores", 1], scores)
        torch.testing.assert_close(cache["pattern", 1], scores.softmax(-1))
        torch.testing.assert_close(cache["z", 1].transpose(1, 2), scores.softmax(-1) @ v)

        uniform = torch.full((2, 4, 9, 9), 1 / 9)
        edited = model.run_with_hooks(
            ids(), fwd_hooks=[("blocks.1.attn.hook_pattern", lambda value, hook: uniform)]
        )
        mixed = (uniform @ v).transpose(1, 2).flatten(2)
        out = bare.transformer["h"][1].attn.c_proj
        handle = out.register_forward_pre_hook(lambda m, args: (mixed,))
        wanted, _ = bare(ids())
        handle.remove()
    torch.testing.assert_close(edited, wanted)


def test_weights_are_the_modules_parameters() -> None:
    bare = nano()
    model = lensbridge.load(bare, architecture=NANO)
    fused = bare.transformer["h"][1].attn.c_attn.weight  # [3 m, m]: q, k, v
    q, k, v = fused.view(3, 4, 6, 24)
    assert torch.equal(model.W_Q[1], q.mT)
    assert torch.equal(model.W_K[1], k.mT)
    assert torch.equal(model.W_V[1], v.mT)
    assert torch.equal(model.W_O[1], bare.transformer["h"][1].attn.c_proj.weight.mT.view(4, 6, 24))
    assert torch.equal(model.W_in[0], bare.transformer["h"][0].mlp.c_fc.weight.mT)
    assert torch.equal(model.W_E, bare.transformer["wte"].weight)
    assert torch.equal(model.W_pos, bare.transformer["wpe"].weight)
    assert torch.equal(model.W_U, bare.lm_head.weight.mT)
    assert model.cfg.tie_word_embeddings
    assert model.cfg.attn_implementation == "own"
    assert model.cfg.hf is bare.config


def test_gradients_are_autograds() -> None:
    bare = small_llama()
    model = lensbridge.load(bare, architecture=SMALL_LLAMA)
    kept: list[Tensor] = []
    handle = bare.layers[1].register_forward_pre_hook(
        lambda m, args: (kept.append(args[0]), args[0].retain_grad())[0]
    )
    bare(ids())[:, -1, 3].sum().backward()
    handle.remove()
    found = model.gradients(ids(), ["blocks.1.hook_resid_pre"], of=lambda out: out[:, -1, 3].sum())
    torch.testing.assert_close(found.gradients["blocks.1.hook_resid_pre"], kept[0].grad)


@each
def test_a_run_over_some_layers_is_part_of_the_whole(case: Case) -> None:
    bare = case.make()
    model = lensbridge.load(bare, architecture=case.architecture)
    with torch.no_grad():
        whole = model(ids())
        middle = model(ids(), stop_at_layer=1)
        _, native = natively(bare, {"x": (f"{case.blocks}.1", "input")}, ids())
        assert torch.equal(middle, native["x"])
        assert torch.equal(model(middle, start_at_layer=1), whole)
        last = len(bare.get_submodule(case.blocks))
        assert torch.equal(model(model(ids(), stop_at_layer=last), start_at_layer=last), whole)
    assert shadows(bare) == 0


# --- arguments and outputs -----------------------------------------------------------------------


def test_targets_give_the_logits_of_every_position_and_a_loss() -> None:
    bare = nano()
    model = lensbridge.load(bare, architecture=NANO)
    with torch.no_grad():
        logits, _ = bare(ids(), ids())
        assert torch.equal(model(ids(), targets=ids()), logits)
        assert torch.equal(model({"idx": ids(), "targets": ids()}), logits)
        found = model(ids(), return_type="loss", targets=ids())
        wanted = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())
    torch.testing.assert_close(found, wanted)
    with pytest.raises(InputError, match=r"logits of every position.*targets"):
        model(ids(), return_type="loss")
    with pytest.raises(TypeError, match=r"unexpected keyword 'target' for NanoGPT.*'targets'"):
        model(ids(), target=ids())


REFUSED = {
    "text": (lambda model: model("some text"), TokenizerMissingError, "needs a tokenizer"),
    "mask": (
        lambda model: model(ids(), attention_mask=torch.tensor([[0] * 3 + [1] * 6, [1] * 9])),
        InputError,
        "NanoGPT has no argument attention_mask",
    ),
    "positions": (
        lambda model: model(ids(), position_ids=torch.arange(9)[None]),
        InputError,
        "NanoGPT has no argument position_ids",
    ),
    "embeddings": (
        lambda model: model(torch.zeros(1, 3, 24)),
        InputError,
        "NanoGPT takes no embeddings",
    ),
    "cache": (
        lambda model: model(ids(), past_key_values=object()),
        TypeError,
        "takes no key/value cache",
    ),
    "generate": (
        lambda model: model.generate(ids(), 3),
        LensbridgeError,
        "NanoGPT is a plain module: HuggingFace's generate needs a transformers model",
    ),
    "length": (lambda model: model(ids(1, 17)), InputError, "the context is 16"),
    "vocabulary": (lambda model: model(ids() + 60), InputError, "vocabulary is 0 to 60"),
}


@pytest.mark.parametrize(("call", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_a_module_cannot_take_is_one_clear_error(
    call: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    bare = nano()
    model = lensbridge.load(bare, architecture=NANO)
    with pytest.raises(error, match=text) as raised:
        call(model)
    assert len(str(raised.value).splitlines()) <= 15
    assert shadows(bare) == 0


def test_a_mask_without_padding_says_nothing() -> None:
    model = lensbridge.load(nano(), architecture=NANO)
    with torch.no_grad():
        assert torch.equal(model(ids(), attention_mask=torch.ones(2, 9)), model(ids()))
        given = {"input_ids": ids(), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
        assert torch.equal(model(given), model(ids()))


def test_hooks_act_in_the_modules_own_generation() -> None:
    bare = nano()
    model = lensbridge.load(bare, architecture=NANO)
    handle = bare.transformer["h"][0].mlp.register_forward_hook(lambda m, a, out: out * -2)
    wanted = bare.generate(ids(1, 4), 5)
    handle.remove()
    seen = []

    def edit(value: Tensor, hook: Any) -> Tensor:
        seen.append((hook.step, hook.tokens.shape[1]))
        return value * -2

    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", edit)]):
        assert torch.equal(bare.generate(ids(1, 4), 5), wanted)
    assert seen == [(step, 4 + step) for step in range(5)]
    assert not torch.equal(bare.generate(ids(1, 4), 5), wanted)


def test_a_patched_run_is_the_patched_module() -> None:
    """The logits of the last position alone are enough for a sweep."""
    bare = nano()
    model = lensbridge.load(bare, architecture=NANO)
    clean, corrupted = ids(1), ids(1).clone()
    corrupted[:, 3] = (corrupted[:, 3] + 5) % VOCABULARY

    def metric(logits: Tensor) -> Tensor:
        return (logits[:, -1, 3] - logits[:, -1, 4]).mean()

    _, cache = model.run_with_cache(clean)
    found = patching.get_act_patch_resid_pre(model, corrupted, cache, metric)
    assert found.shape == (2, 9)
    for layer in range(2):
        for pos in range(9):
            stream = cache["resid_pre", layer]

            def put(m: nn.Module, args: Any, at: int = pos, stream: Tensor = stream) -> Any:
                return (
                    torch.cat([args[0][:, :at], stream[:, at : at + 1], args[0][:, at + 1 :]], 1),
                )

            handle = bare.transformer["h"][layer].register_forward_pre_hook(put)
            with torch.no_grad():
                wanted = metric(bare(corrupted)[0])
            handle.remove()
            torch.testing.assert_close(found[layer, pos], wanted)


class Answer:
    """An output with logits as an attribute."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


Pair = namedtuple("Pair", ["loss", "logits"])
OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda logits: logits, lambda out: out),
    "loss first": (lambda logits: (logits.mean(), logits), lambda out: out[1]),
    "named": (lambda logits: Pair(None, logits), lambda out: out.logits),
    "list": (lambda logits: [logits, {}], lambda out: out[0]),
    "mapping": (lambda logits: {"y": logits, "state": logits[..., :3]}, lambda out: out["y"]),
    "object": (Answer, lambda out: out.logits),
}


class Returning(NanoGPT):
    """A `NanoGPT` with another form of output, whose logits are multiplied."""

    def __init__(self, form: Callable[[Tensor], Any], scale: float) -> None:
        super().__init__(NanoConfig())
        self.form, self.scale = form, scale

    def forward(self, tokens: Tensor, /) -> Any:
        return self.form(super().forward(tokens, tokens)[0] * self.scale)


@pytest.mark.parametrize(("form", "logits"), OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_logits_are_found_in_every_form_of_output(
    form: Callable[[Tensor], Any], logits: Callable[[Any], Tensor], scale: float
) -> None:
    bare = seeded(Returning(form, scale))
    described = replace(NANO, logit_scale=None if scale == 1.0 else scale)
    model = lensbridge.load(bare, architecture=described)
    with torch.no_grad():
        found, cache = model.run_with_cache(ids(), "hook_logits")
        assert torch.equal(found, logits(bare(ids())))
        assert torch.equal(cache["hook_logits"], found)
        doubled = [("hook_logits", lambda value, hook: value * 2)]
        assert torch.equal(model.run_with_hooks(ids(), fwd_hooks=doubled), found * 2)
        with model.hooks(fwd_hooks=doubled):
            assert torch.equal(logits(bare(ids())), found * 2)


# --- configs -------------------------------------------------------------------------------------


def as_class(fields: dict[str, Any]) -> Any:
    return type("Config", (), fields)


def as_tuple(fields: dict[str, Any]) -> Any:
    return namedtuple("Config", fields)(**fields)


CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "namespace": lambda fields: SimpleNamespace(**fields),
    "class": as_class,
    "named tuple": as_tuple,
}


@pytest.mark.parametrize("form", CONFIGS.values(), ids=CONFIGS)
def test_sizes_are_read_from_any_config(form: Callable[[dict[str, Any]], Any]) -> None:
    config = form(asdict(NanoConfig()))
    model = lensbridge.load(nano(config=config), architecture=NANO)
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.n_ctx) == (2, 4, 16)
    assert model.cfg.hf is config
    assert "d_model" in model.cfg.to_dict()
    assert derive(model.hf_model).architecture == replace(
        NANO, name="nanogpt", classes=("NanoGPT",)
    )


def test_sizes_may_be_a_dictionary_numbers_of_the_module_or_numbers_in_dims() -> None:
    bare = lecture()
    model = lensbridge.load(bare, architecture=LECTURE)
    assert (model.cfg.n_layers, model.cfg.d_vocab, model.cfg.hf) == (2, VOCABULARY, None)
    bare.depth, bare.args = 2, {"width": 20, "room": 16}
    named = Dims(layers="depth", d_model="width", heads="room", context="room")
    model = lensbridge.load(bare, architecture=replace(LECTURE, dims=named))
    assert (model.cfg.n_layers, model.cfg.n_ctx, model.cfg.d_vocab) == (2, 16, VOCABULARY)
    assert model.cfg.hf is bare.args


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        (Dims(layers="n_layers", d_model="n_embd", heads="n_head"), "holds 'n_layers'.*'n_layer'"),
        (Dims(layers=3, d_model="n_embd", heads="n_head"), r"has 2 layers and dims.layers \(3\)"),
        (Dims(layers=2, d_model=24, heads=5), "c_attn.*not a multiple"),
        (Dims(layers=2, d_model=25, heads=4), "input of 'c_attn' is 24"),
    ],
)
def test_sizes_that_do_not_fit_say_what_there_is(dims: Dims, said: str) -> None:
    with pytest.raises(ArchitectureMismatchError, match=f"(?s){said}"):
        lensbridge.load(nano(), architecture=replace(NANO, dims=dims))


# --- deriving ------------------------------------------------------------------------------------


BOUNDARIES: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    "bare parameters": (from_scratch, "attn", False),
    "PyTorch's own attention": (of_torch, "attention", True),
}


@pytest.mark.parametrize(("make", "attention", "head"), BOUNDARIES.values(), ids=BOUNDARIES)
def test_modules_whose_inside_cannot_be_hooked_are_read_at_their_boundaries(
    make: Callable[[], nn.Module], attention: str, head: bool
) -> None:
    bare = make()
    model = lensbridge.load(bare)
    found: dict[str, Tensor] = {}
    block = bare.blocks[1]
    handles = [
        part.register_forward_hook(
            lambda m, a, out, name=name: found.update(
                {name: (out[0] if isinstance(out, tuple) else out).detach().clone()}
            )
        )
        for name, part in {
            "blocks.1.hook_mixer_out": block.get_submodule(attention),
            "blocks.1.hook_mlp_out": block.mlp,
            "blocks.1.hook_resid_post": block,
        }.items()
    ]
    with torch.no_grad():
        output = bare(ids())
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids())
    assert torch.equal(logits, output)
    for name, value in found.items():
        assert torch.equal(cache[name], value), name
    norm = next(one for name, one in block.named_children() if name in ("ln2", "norm2"))
    gain, bias = norm.parameters()
    given = cache["resid_mid", 1]
    wanted = nn.functional.layer_norm(given, given.shape[-1:], gain, bias)
    torch.testing.assert_close(cache["blocks.1.ln2.hook_out"], wanted)
    assert torch.equal(model.blocks[1].ln2.w, gain)
    assert ("hook_logits" in cache) is head
    wanted = nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())
    with torch.no_grad():
        torch.testing.assert_close(model(ids(), return_type="loss"), wanted)


def test_what_is_derived_is_what_was_written_by_hand() -> None:
    assert derive_and_check(nano(False)) == replace(NANO, name="nanogpt")
    derived = derive_and_check(small_llama())
    assert derived == replace(SMALL_LLAMA, name="smallllama")
    block = derive_and_check(lecture()).block
    assert isinstance(block, Block)
    assert block.mixer == Mixer("sa", steps=("proj",))


@pytest.mark.parametrize("case", [CASES["nano"], CASES["llama"]], ids=["nano", "llama"])
def test_the_conformance_kit_checks_plain_modules(case: Case) -> None:
    bare = case.make()
    assert conformance(bare, architecture=case.architecture).passed
    wrong = replace(case.architecture.block, residual="parallel")
    report = conformance(bare, architecture=replace(case.architecture, block=wrong))
    assert "branches read the stream" in {row.check for row in report.failures}


def test_loading_leaves_the_module_as_it_was() -> None:
    bare = nano().train()
    bare.transformer["h"][0].eval()
    modes = [module.training for module in bare.modules()]
    before = {name: value.clone() for name, value in bare.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        lensbridge.load(bare)
    assert torch.equal(torch.rand(3), wanted)
    assert [module.training for module in bare.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in bare.state_dict().items())
    assert all(parameter.grad is None for parameter in bare.parameters())
    assert shadows(bare) == 0


def test_adapters_on_a_plain_module() -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
    bare = get_peft_model(nano(), lora).eval()
    model = lensbridge.load(bare, architecture=NANO)
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids())
        assert torch.equal(logits, bare(ids())[0])
    layer = bare.get_base_model().transformer["h"][0].attn.c_attn
    x = cache["normalized", 0, "ln1"]
    gained = bare.get_base_model().transformer["h"][0].ln_1
    with torch.no_grad():
        q = layer(x * gained.weight + gained.bias)[..., :24]
    torch.testing.assert_close(cache["q", 0].flatten(2), q)


# --- modules that cannot be opened ---------------------------------------------------------------


class Needy(Lecture):
    """It cannot run on ids alone."""

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return super().forward(x * mask)


class Loss(NanoGPT):
    """It returns a loss alone."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        return super().forward(idx, idx)[1]


class Loop(nn.Module):
    """A recurrent model: it has no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(7, 6), nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 7)

    def forward(self, idx: Tensor) -> Tensor:
        return self.head(self.cell(self.table(idx))[0])


UNDESCRIBED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "floats": (lambda: nn.Linear(2, 2), "Linear cannot be opened: its forward raised RuntimeError"),
    "needs more": (lambda: seeded(Needy()), "needs mask beside x"),
    "loss": (lambda: seeded(Loss(NanoConfig())), "returned a tensor of shape"),
    "no layers": (lambda: Loop().eval(), "no nn.ModuleList"),
}


@pytest.mark.parametrize(("make", "said"), UNDESCRIBED.values(), ids=UNDESCRIBED)
def test_a_module_that_no_description_fits_says_why(
    make: Callable[[], nn.Module], said: str
) -> None:
    bare = make()
    model: Any = lensbridge.load(bare)
    assert isinstance(model, ModuleLens)
    assert said in model.why
    assert len(model.why.splitlines()) <= 15
    assert len(model.why) < 2000
    assert shadows(bare) == 0


def test_a_module_without_a_forward_cannot_be_opened() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="cannot be opened"):
        lensbridge.load(nn.Module())
    with pytest.raises(UnsupportedArchitectureError, match="ModuleList cannot be opened"):
        lensbridge.load(nn.ModuleList([nn.Linear(2, 2)]))


def test_arguments_without_a_default_can_be_passed_with_a_description() -> None:
    bare, mask = seeded(Needy()), torch.ones(2, 9, dtype=torch.long)
    model = lensbridge.load(bare, architecture=LECTURE)
    with torch.no_grad():
        assert torch.equal(model(ids(), mask=mask), bare(ids(), mask)["scores"])


def test_a_description_of_a_module_that_returns_no_logits_is_refused_at_load() -> None:
    with pytest.raises(LoadError, match="return logits"):
        lensbridge.load(seeded(Loss(NanoConfig())), architecture=NANO)


class Lazy:
    """A config with fields that are computed, two of which cannot be."""

    def __init__(self) -> None:
        vars(self).update(asdict(NanoConfig()))

    @property
    def world_size(self) -> int:
        raise RuntimeError("no process group")

    @property
    def gone(self) -> int:
        raise AttributeError("not in this version")


def test_a_field_that_cannot_be_read_raises_where_it_is_asked_for() -> None:
    hf = seeded(NanoGPT(NanoConfig()))
    hf.config = Lazy()  # type: ignore[assignment]
    model = lensbridge.load(hf, architecture=NANO)
    ids = torch.randint(VOCABULARY, (2, 5))
    _, cache = model.run_with_cache(ids, "resid_post")
    kept: list[Tensor] = []
    hf.transformer.h[0].register_forward_hook(lambda _, args, out: kept.append(out))  # type: ignore[union-attr,operator,index]
    hf(ids)
    assert torch.equal(cache["resid_post", 0], kept[0])
    for field, told in (
        ("world_size", r"'world_size' of the config \(Lazy\).*RuntimeError: no process group"),
        ("gone", "holds 'gone'"),
    ):
        with pytest.raises(LoadError, match=told):
            lensbridge.load(hf, architecture=replace(NANO, dims=replace(NANO.dims, heads=field)))

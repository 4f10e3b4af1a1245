"""A description is of what a class computes: code of a model's own is held against it at load.

The oracle is the bare model: its logits, and the inputs and outputs of its modules under PyTorch's
own hooks.
"""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import accelerate
import pytest
import torch
from lensbridge_adapters.llama import LLAMA
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, Shape, build, tokens
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

import lensbridge
from lensbridge.errors import (
    ArchitectureMismatchError,
    LoadError,
    UnsupportedArchitectureError,
    WeightError,
)
from lensbridge.loading import description
from lensbridge.native.resolve import select
from lensbridge.native.resolve.overrides import overrides_in

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = __name__
CONFIG = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": None,
}


def llama(cls: type[LlamaForCausalLM] = LlamaForCausalLM) -> Any:
    """A tiny Llama of a class, with weights of order one."""
    model = cls(LlamaConfig(**CONFIG)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else 0.3 * noise)
    return model


def with_each(attribute: str, change: Callable[[Any], nn.Module]) -> Callable[[], Any]:
    """A Llama in which one module of each layer is replaced, or the layers are (``)."""

    def make() -> Any:
        model = llama()
        layers = model.model.layers
        for i, layer in enumerate(layers):
            if attribute:
                setattr(layer, attribute, change(getattr(layer, attribute)).eval())
            else:
                layers[i] = change(layer).eval()
        return model

    return make


# --- models with code of their own ---------------------------------------------------------------


class ScalingLayer(LlamaDecoderLayer):
    """Adds 1.3 times what attention gives."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(given, *args, **kwargs)
        middle = hidden_states + 1.3 * attended
        return middle + self.mlp(self.post_attention_layernorm(middle))

    @classmethod
    def of(cls, layer: LlamaDecoderLayer) -> "ScalingLayer":
        config, index = layer.self_attn.config, layer.self_attn.layer_idx
        new = cls(config, index)
        new.load_state_dict(layer.state_dict())
        return new


class ScalingLogits(LlamaForCausalLM):
    """Returns half of its head's output."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output


class BendingLogits(LlamaForCausalLM):
    """Returns what no description can say."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + output.logits.roll(1, -1).tanh()
        return output


class ScalingModel(LlamaModel):
    """Multiplies what comes out of its layers."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 3.0
        return output


class OwnNorm(nn.Module):
    """An RMSNorm with a gain of 1 + weight."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return x * scale * (1 + self.weight)


class OwnMLP(nn.Module):
    """A gated MLP that exchanges gate and up."""

    def __init__(self, mlp: LlamaMLP) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.up_proj(x)) * self.gate_proj(x))


class SameMLP(LlamaMLP):
    """An MLP with a `forward` of its own that computes the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def as_class(cls: type[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def change(module: nn.Module) -> nn.Module:
        module.__class__ = cls
        return module

    return change


def gemma_norm(norm: Any) -> nn.Module:
    new = GemmaRMSNorm(CONFIG["hidden_size"])
    new.weight = norm.weight
    return new


def by_closure(mlp: Any) -> Any:
    native = mlp.forward
    mlp.forward = lambda x: 0.7 * native(x)
    return mlp


def by_method(mlp: Any) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        return 0.7 * LlamaMLP.forward(self, x)

    mlp.forward = MethodType(forward, mlp)
    return mlp


def whole(model: Any) -> Any:
    model.model.__class__ = ScalingModel
    return model


class Case:
    """A model, the code that is its own, and what it computes at a layer by plain hooks."""

    def __init__(self, make: Callable[[], Any], said: str, adds: float = 1.0) -> None:
        self.make, self.said, self.adds = make, said, adds


CASES = {
    "layer": Case(
        with_each("", ScalingLayer.of), "model.layers.0: ScalingLayer has a forward of its own", 1.3
    ),
    "logits": Case(lambda: llama(ScalingLogits), "the model: ScalingLogits has a forward"),
    "base model": Case(lambda: whole(llama()), "model: ScalingModel has a forward of its own"),
    "norm": Case(
        with_each("input_layernorm", OwnNorm),
        f"input_layernorm: the description does not know the class OwnNorm (of {HERE})",
    ),
    "MLP": Case(
        with_each("mlp", OwnMLP),
        f"layers.0.mlp: the description does not know the class OwnMLP (of {HERE})",
    ),
    "closure": Case(with_each("mlp", by_closure), "this LlamaMLP has a forward of its own"),
}


def inside(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Of the bare model: what layers read, and what their branches give."""
    found: dict[str, Tensor] = {}
    handles = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            found[name] = value.detach().clone()

        return hook

    for i, layer in enumerate(model.model.layers):
        parts = {"resid_post": layer, "attn_out": layer.self_attn, "mlp_out": layer.mlp}
        for name, module in parts.items():
            handles.append(module.register_forward_hook(keep(f"{name} {i}"), with_kwargs=True))
    with torch.no_grad():
        found["logits"] = model(ids).logits
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_code_of_a_models_own_is_described_anew(case: Case) -> None:
    model, ids = case.make(), tokens()
    assert case.said in str(overrides_in(model, select(model, None))[0])
    lens = lensbridge.load(model)
    assert "from its own behaviour" in repr(lens)
    native = inside(model, ids)
    with torch.no_grad():
        logits, cache = lens.run_with_cache(ids, names_filter=lens.hook_names)
    assert torch.equal(logits, native["logits"])
    if "hook_logits" in cache:
        assert torch.equal(cache["hook_logits"], native["logits"])
    for i in range(2):
        assert torch.equal(cache["resid_post", i], native[f"resid_post {i}"])
        if ("attn_out", i) in cache:
            added = case.adds * native[f"attn_out {i}"]
            torch.testing.assert_close(cache["attn_out", i], added)
        if ("resid_mid", i) in cache:
            torch.testing.assert_close(cache["resid_mid", i], cache["resid_pre", i] + added)
            after = cache["resid_mid", i] + cache["mlp_out", i]
            torch.testing.assert_close(cache["resid_post", i], after)


@pytest.mark.slow
def test_what_the_derived_description_says_of_scaling_code() -> None:
    layers = lensbridge.load(CASES["layer"].make())
    assert layers.architecture.block.attn.scale == pytest.approx(1.3)
    assert lensbridge.load(CASES["logits"].make()).native.logit_scale == pytest.approx(0.5)


@pytest.mark.slow
def test_logits_that_no_description_can_say_are_read_and_their_head_has_no_weights() -> None:
    model = llama(BendingLogits)
    lens = lensbridge.load(model)
    assert lens.architecture.undescribed["unembed"]
    with pytest.raises(WeightError, match="not what its head gives"):
        _ = lens.W_U
    with torch.no_grad():
        logits, cache = lens.run_with_cache(tokens())
        assert torch.equal(logits, model(tokens()).logits)
    assert torch.equal(cache["hook_logits"], logits)
    assert torch.equal(cache["resid_post", 1], inside(model, tokens())["resid_post 1"])


@pytest.mark.slow
def test_code_that_computes_the_same_leaves_the_description_in_use() -> None:
    model = with_each("mlp", as_class(SameMLP))()
    assert lensbridge.load(model).architecture is LLAMA


class NoStream(LlamaForCausalLM):
    """Runs each layer on the embeddings and sums up."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        x = self.model.embed_tokens(input_ids)
        places = torch.arange(x.shape[1])[None]
        turns = self.model.rotary_emb(x, places)
        total = sum(one(x, position_embeddings=turns) for one in self.model.layers)
        output = super().forward(input_ids, **kwargs)
        output.logits = self.lm_head(self.model.norm(total))
        return output


def test_code_that_cannot_be_described_is_one_error() -> None:
    model = llama(NoStream)
    with pytest.raises(UnsupportedArchitectureError) as raised:
        lensbridge.load(model)
    message = str(raised.value)
    for part in (
        "NoStream would be read as 'llama' (from lensbridge_adapters)",
        "NoStream has a forward of its own beside LlamaForCausalLM's",
        "it fails a check: every point fires once",
        "No architecture could be derived for NoStream",
        "architecture=...",
        "derive=False",
    ):
        assert part in message
    assert len(message.splitlines()) <= 15
    assert len(message) < 2500
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- the user's word, and what is trusted --------------------------------------------------------


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No check and no derivation may run."""

    def refuse(*args: Any) -> None:
        raise AssertionError("the model was checked")

    monkeypatch.setattr(description, "first_failure", refuse)
    monkeypatch.setattr(description, "derive_and_check", refuse)


@pytest.mark.usefixtures("unchecked")
def test_the_users_word_is_not_checked() -> None:
    model = CASES["layer"].make()
    assert lensbridge.load(model, derive=False).architecture is LLAMA
    assert lensbridge.load(model, architecture=LLAMA).architecture is LLAMA


class Nothing(LlamaForCausalLM):
    """A subclass that says nothing new of a forward pass."""

    _no_split_modules = ()
    note = "mine"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)

    def extra(self) -> int:
        return 1

    def _init_weights(self, module: nn.Module) -> None:
        pass


def torch_norm(norm: Any) -> nn.Module:
    new = nn.RMSNorm(CONFIG["hidden_size"], eps=norm.variance_epsilon)
    new.weight = norm.weight
    return new


def lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))


TRUSTED: dict[str, Callable[[], Any]] = {
    "subclass": lambda: llama(Nothing),
    "renamed": lambda: llama(type("LlamaForCausalLM", (LlamaForCausalLM,), {})),
    "adapters": lambda: lora(llama()),
    "offloaded": lambda: accelerate.cpu_offload(llama()),
    "torch module": with_each("input_layernorm", torch_norm),
    "compiled": lambda: torch.compile(llama(), backend="eager"),
    "compiled forward": lambda: of_forward(llama()),
}


def of_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("make", TRUSTED.values(), ids=TRUSTED)
def test_what_is_no_code_of_the_models_own_is_not_checked(make: Callable[[], Any]) -> None:
    assert lensbridge.load(make()).architecture is LLAMA


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", FAMILIES)
def test_known_classes_are_trusted(family: str) -> None:
    assert lensbridge.load(build(Shape(family))).cfg.plugin == "lensbridge_adapters"


# --- what counts as code of a model's own --------------------------------------------------------


class OwnHelper(LlamaForCausalLM):
    """Overrides something that a pass goes through."""

    def _own(self) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class OwnWeight(nn.Linear):
    """A projection with another weight than it holds."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def another(cls: type[nn.Module]) -> type[nn.Module]:
    """A class of the same name from here."""
    return type(cls.__name__, (cls,), {"forward": lambda self, x: cls.forward(self, x)})


def patched(module: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], Any]:
    def make(monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(module, name, value)
        return llama()

    return make


@functools.wraps(LlamaMLP.forward)
def wrapping(self: Any, x: Tensor) -> Tensor:
    return LlamaMLP.down_proj(x)


def own_rotary(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return q, k


FOUND: dict[str, tuple[Callable[[pytest.MonkeyPatch], Any], str]] = {
    "call": (lambda _: llama(OwnHelper), "OwnHelper has a __call__ of its own"),
    "projection": (
        lambda _: with_each("mlp", own_projection)(),
        "mlp.down_proj: OwnWeight has a forward of its own beside Linear's",
    ),
    "norm of another family": (
        lambda _: with_each("input_layernorm", gemma_norm)(),
        "the class GemmaRMSNorm (of transformers.models.gemma.modeling_gemma)",
    ),
    "class of the same name": (
        lambda _: with_each("input_layernorm", as_class(another(LlamaRMSNorm)))(),
        "LlamaRMSNorm has a forward of its own beside LlamaRMSNorm's",
    ),
    "method": (lambda _: with_each("mlp", by_method)(), "this LlamaMLP has a forward of its own"),
    "forward of another module": (
        lambda _: with_each("mlp", borrowed)(),
        "this LlamaMLP has a forward of its own",
    ),
    "patched class": (
        patched(LlamaMLP, "forward", lambda self, x: x),
        f"LlamaMLP.forward was replaced by {HERE}.<lambda>",
    ),
    "patched under its name": (
        patched(LlamaMLP, "forward", wrapping),
        f"LlamaMLP.forward was replaced by {HERE}",
    ),
    "forward of another class": (
        patched(LlamaRMSNorm, "forward", GemmaRMSNorm.forward),
        "LlamaRMSNorm.forward was replaced by transformers.models.gemma",
    ),
    "patched file": (
        patched(modeling_llama, "apply_rotary_pos_emb", own_rotary),
        f"model: modeling_llama.apply_rotary_pos_emb was replaced by {HERE}.own_rotary",
    ),
}


def own_projection(mlp: Any) -> Any:
    mlp.down_proj.__class__ = OwnWeight
    return mlp


def borrowed(mlp: Any) -> Any:
    mlp.forward = LlamaMLP(LlamaConfig(**CONFIG)).forward
    return mlp


@pytest.mark.parametrize(("make", "said"), FOUND.values(), ids=FOUND)
def test_code_of_a_models_own_is_found_and_named(
    make: Callable[[pytest.MonkeyPatch], Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(monkeypatch)
    found = [str(one) for one in overrides_in(model, select(model, None))]
    assert len(found) == 1
    assert said in found[0]


def test_a_plain_class_with_a_known_name_is_not_believed() -> None:
    """Its modules have other names, so that the description of GPT-2 does not even fit."""
    from plain_models import VOCABULARY, NanoConfig, NanoGPT, seeded

    model = seeded(type("GPT2LMHeadModel", (NanoGPT,), {})(NanoConfig()))
    lens = lensbridge.load(model)
    assert "from its own behaviour" in repr(lens)
    ids = tokens() % VOCABULARY
    with torch.no_grad():
        assert torch.equal(lens(ids), model(ids)[0])


def test_a_layer_that_lacks_a_module_is_described_anew() -> None:
    """No code is the model's own, and the registered description does not fit."""
    model = build(Shape("gpt2"))
    assert isinstance(model, GPT2LMHeadModel)
    for block in model.transformer.h:
        block.mlp = nn.Identity()
    lens = lensbridge.load(model)
    with torch.no_grad():
        logits, cache = lens.run_with_cache(tokens())
        assert torch.equal(logits, model(tokens()).logits)
    found: list[Tensor] = []
    handle = model.transformer.h[0].register_forward_hook(lambda m, a, out: found.append(out))
    with torch.no_grad():
        model(tokens())
    handle.remove()
    assert torch.equal(cache["resid_post", 0], found[0])
    with pytest.raises(LoadError, match="no module"):
        lensbridge.load(model, derive=False)


def test_code_that_comes_after_loading_is_refused_until_it_is_checked() -> None:
    model = llama()
    lens = lensbridge.load(model)
    before = list(model.model.layers)
    for i, layer in enumerate(before):
        model.model.layers[i] = ScalingLayer.of(layer).eval()
    for _ in range(2):
        with pytest.raises(ArchitectureMismatchError, match=r"ScalingLayer has a forward.*at load"):
            lens.run_with_cache(tokens())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for i, layer in enumerate(before):
        model.model.layers[i] = layer
    with torch.no_grad():
        assert torch.equal(lens(tokens()), model(tokens()).logits)
    known = lensbridge.load(CASES["layer"].make(), derive=False)  # the user's word
    layers = known.hf_model.model.layers
    layers[0] = ScalingLayer.of(layers[1]).eval()
    with torch.no_grad():
        assert torch.equal(known(tokens()), known.hf_model(tokens()).logits)


def test_checks_leave_the_model_as_it_was() -> None:
    model = with_each("mlp", as_class(SameMLP))().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with torch.inference_mode():
        assert lensbridge.load(model).architecture is LLAMA
        assert torch.equal(torch.rand(3), wanted)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

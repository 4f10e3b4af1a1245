"""Gated norms, latents with multipliers, q, k and v at the kernel, outputs that are overwritten."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from lensbridge_adapters.deepseek import AXK1
from lensbridge_adapters.llama import LLAMA
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

import lensbridge
from lensbridge.conformance.mutation import survivors
from lensbridge.conformance.tiny import tiny_model
from lensbridge.derive import derive
from lensbridge.errors import AbsentPointError, InputError, LoadError, UnsupportedError, WeightError
from lensbridge.plugins import registry
from lensbridge.spec import Architecture, Attention, KernelQKV, LatentQKV
from lensbridge.testing import CHECKS, Subject, conformance, run_check
from lensbridge.testing.inputs import inputs_for

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 9, 7, 11, 3, 8], [2, 4, 6, 1, 9, 10]])
NAMES = ("axk2", "beam", "longcat_flash", "zaya")


def described(name: str) -> Architecture:
    """The built-in description, where transformers has the class."""
    found = next(one.architecture for one in registry().claims if one.architecture.name == name)
    if not hasattr(transformers, found.classes[0]):
        pytest.skip(f"this transformers has no {found.classes[0]}")
    return found


def opened(name: str) -> tuple[Any, lensbridge.LensModel]:
    """A tiny bare model, and the same behind the lens."""
    model = tiny_model(described(name), dtype=torch.float64)
    return model, lensbridge.load(model)


def outputs(run: Any, **modules: nn.Module) -> dict[str, Tensor]:
    """What modules of the bare model return in a run."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            found[name] = out[0] if isinstance(out, tuple) else out

        return hook

    handles = [one.register_forward_hook(keep(name)) for name, one in modules.items()]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


def logits_with(model: Any, module: nn.Module, change: Any) -> Tensor:
    """The bare model's logits when a module's output is changed."""
    handle = module.register_forward_hook(lambda _, args, out: change(out))
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    handle.remove()
    return logits


# --- norms with a gate ---------------------------------------------------------------------------


def test_a_gated_norm_has_the_points_of_the_norm_inside_and_gives_what_it_gates() -> None:
    bare, model = opened("axk2")
    norm = bare.model.layers[1].post_attention_layernorm
    raw = outputs(lambda: bare(IDS), whole=norm, inner=norm.norm)
    _, cache = model.run_with_cache(IDS)
    at = "blocks.1.ln2"
    assert torch.equal(cache[f"{at}.hook_out"], raw["whole"])
    inner = cache[f"{at}.hook_normalized"] * model.weight(f"{at}.w")
    torch.testing.assert_close(inner.detach(), raw["inner"], rtol=1e-5, atol=1e-6)
    read = cache["resid_mid", 1]
    wanted = (read.float().pow(2).mean(-1, keepdim=True) + norm.norm.variance_epsilon).sqrt()
    torch.testing.assert_close(cache[f"{at}.hook_scale"], wanted)


def test_an_edited_divisor_goes_through_the_gate() -> None:
    bare, model = opened("axk2")
    inner = bare.model.layers[1].input_layernorm.norm
    wanted = logits_with(bare, inner, lambda out: out / 2)
    found = model.run_with_hooks(
        IDS, fwd_hooks=[("blocks.1.ln1.hook_scale", lambda value, hook: value * 2)]
    )
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_linear_in_the_stream_refuses_a_gate() -> None:
    _, model = opened("axk2")
    _, cache = model.run_with_cache(IDS)
    terms = cache.decompose_resid(1)
    torch.testing.assert_close(terms.sum(0), cache["resid_pre", 1], rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"AXK2GatedRMSNorm multiplies .*apply_ln=False"):
        cache.decompose_resid(1, apply_ln=True)


def test_gradients_at_receivers_go_through_the_gate() -> None:
    from lensbridge.causal.receiver_gradients import pulled

    _, model = opened("axk2")
    norm = model.native.blocks[1].ln1
    assert norm is not None
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(4, 2, 3, 32, dtype=torch.float64)
    out = norm.module(x)
    each = [torch.autograd.grad(out, x, one, retain_graph=True)[0] for one in grad]
    found = pulled(norm, x.detach(), grad)
    torch.testing.assert_close(found, torch.stack(each), rtol=1e-4, atol=1e-5)


# --- latents -------------------------------------------------------------------------------------


def test_queries_stand_beside_their_gate_in_one_projection() -> None:
    bare, model = opened("axk2")
    attn = bare.model.layers[0].self_attn
    raw = outputs(lambda: bare(IDS), q=attn.q_gate_proj, latent=attn.q_a_proj)
    _, cache = model.run_with_cache(IDS)
    heads = raw["q"].unflatten(-1, (attn.num_heads, -1))
    assert torch.equal(cache["q", 0], heads[..., : attn.qk_head_dim])
    assert torch.equal(cache["blocks.0.attn.hook_q_latent"], raw["latent"])
    assert "blocks.0.attn.W_Q" not in model.weight_names
    with pytest.raises(WeightError, match="before and after its norm"):
        _ = model.blocks[0].attn.W_Q


def test_latents_are_multiplied() -> None:
    bare, model = opened("longcat_flash")
    attn = bare.model.layers[1].self_attn[0]
    names = ("q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
    raw = outputs(lambda: bare(IDS), **{name: getattr(attn, name) for name in names})
    _, cache = model.run_with_cache(IDS)
    q = raw["q_b_proj"].unflatten(-1, (attn.num_heads, -1)) * attn.mla_scale_q_lora
    torch.testing.assert_close(cache["q", 1], q)
    # W_K and W_V are those of the latent before its norm divides it
    latent = raw["kv_a_proj_with_mqa"][..., : attn.kv_lora_rank]
    divisor = (latent.float().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    read = cache["blocks.1.ln1.hook_out"]
    made = torch.einsum("bpm,hmd->bphd", read, model.blocks[1].attn.W_V) / divisor.unsqueeze(-1)
    down = attn.kv_a_proj_with_mqa
    if down.bias is None:
        torch.testing.assert_close(made.detach(), cache["v", 1], rtol=1e-4, atol=1e-4)
    doubled = model.run_with_hooks(
        IDS, fwd_hooks=[("blocks.1.attn.hook_q", lambda value, hook: value * 2)]
    )
    wanted = logits_with(bare, attn.q_b_proj, lambda out: out * 2)
    torch.testing.assert_close(doubled.detach(), wanted, rtol=1e-5, atol=1e-5)


def test_the_halves_of_a_layer_and_its_experts_are_stacks() -> None:
    bare, model = opened("longcat_flash")
    layer = bare.model.layers[0]
    modules = {
        "blocks.0.hook_attn_out": layer.self_attn[0],
        "second.blocks.0.hook_attn_out": layer.self_attn[1],
        "blocks.0.hook_mlp_out": layer.mlps[0],
        "second.blocks.0.hook_mlp_out": layer.mlps[1],
        "shortcut.blocks.0.hook_mlp_out": layer.mlp,
    }
    raw = outputs(lambda: bare(IDS), **modules)
    _, cache = model.run_with_cache(IDS)
    for name, value in raw.items():
        assert torch.equal(cache[name], value), name
    added = sum(raw.values(), cache["resid_pre", 0])
    torch.testing.assert_close(cache["resid_post", 0], added)
    with pytest.raises(AbsentPointError, match="two attentions, two MLPs and its experts"):
        _ = cache["resid_mid", 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_reads_latent": True}, "the input of 'q_b_proj' is 14, .* says 28"),
        ({"gated_q": True}, "the width of a head of 'q_b_proj' is 8, .* says 16"),
        ({"kv_scale": "sqrt(hiden_size)"}, "no 'hiden_size'"),
    ],
)
def test_a_wrong_word_about_a_latent_is_refused(change: dict[str, Any], message: str) -> None:
    block = AXK1.block[1]
    assert block.attn is not None
    attn = replace(block.attn, qkv=LatentQKV(**change))
    wrong = replace(AXK1, block=(replace(block, attn=attn),))
    described("axk1")
    with pytest.raises(LoadError, match=message):
        lensbridge.load(tiny_model(AXK1), architecture=wrong)


# --- q, k and v at the kernel, and constants of sums ---------------------------------------------


def test_queries_that_no_projection_makes_are_read_at_the_kernel() -> None:
    bare, model = opened("zaya")
    attn = bare.model.layers[1].self_attn
    values: list[Tensor] = []
    handle = attn.qkv_proj.register_forward_hook(lambda _, args, out: values.append(out[2]))
    _, cache = model.run_with_cache(IDS)
    handle.remove()
    torch.testing.assert_close(cache["v", 1], values[0].detach())
    heads = cache["v", 1].repeat_interleave(2, dim=2)
    mixed = torch.einsum("bhqk,bkhd->bqhd", cache["pattern", 1], heads)
    torch.testing.assert_close(cache["z", 1], mixed, rtol=1e-5, atol=1e-6)
    with pytest.raises(AbsentPointError, match="no projections to the queries"):
        _ = cache["q", 1]
    with pytest.raises(InputError, match="start_at_layer=1: how attention of Zaya"):
        model(cache["resid_pre", 1], start_at_layer=1)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_an_edited_value_is_what_the_kernel_mixes(kernel: str) -> None:
    bare = tiny_model(described("zaya"), dtype=torch.float64, kernel=kernel)
    model = lensbridge.load(bare)

    def flipped(out: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return out[0], out[1], -out[2]

    wanted = logits_with(bare, bare.model.layers[0].self_attn.qkv_proj, flipped)
    edit = ("blocks.0.attn.hook_v", lambda value, hook: -value)
    found = model.run_with_hooks(IDS, fwd_hooks=[edit])
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-6, atol=1e-6)


def test_constants_of_a_sum_are_terms_of_the_stream() -> None:
    bare, model = opened("zaya")
    _, cache = model.run_with_cache(IDS)
    for layer, point in ((1, ("resid_pre", 1)), (2, ("resid_post", 1))):
        terms, labels = cache.decompose_resid(layer, return_labels=True)
        torch.testing.assert_close(terms.sum(0), cache[point], rtol=1e-6, atol=1e-6)
    module = bare.model.layers[1].post_mlp_residual_scale
    constant = module.hidden_states_bias * module.hidden_states_scale
    constant = constant + module.residual_bias * module.residual_scale
    found = terms[labels.index("1_mlp_sum_bias")]
    torch.testing.assert_close(found, constant.detach().expand_as(found))


def test_nothing_is_said_of_projections_that_are_not_there() -> None:
    attn = described("zaya").block.attn  # type: ignore[union-attr]
    assert isinstance(attn, Attention)
    assert isinstance(attn.qkv, KernelQKV)
    zaya = described("zaya")
    for change, message in (
        ({"k_scale": 2.0, "q_norm": "qk_norm"}, "leave out q_norm, k_scale"),
        ({"sum_bias": "2 * 3"}, "'2 \\* 3' in sum_bias is no parameter"),
        ({"scale": "hidden_act"}, "'hidden_act' is 'silu' in the config, and no number"),
    ):
        block = replace(zaya.block, attn=replace(attn, **change))  # type: ignore[type-var]
        with pytest.raises(LoadError, match=message):
            lensbridge.load(tiny_model(zaya), architecture=replace(zaya, block=block))


def test_derivation_reads_at_the_kernel_what_no_projection_makes() -> None:
    bare = tiny_model(described("zaya"))
    found = derive(bare).architecture
    assert found is not None
    attn = found.block.attn  # type: ignore[union-attr]
    assert attn == Attention("self_attn", qkv=KernelQKV(), out="o_proj")
    mixes = [check for check in CHECKS if check.name == "z is pattern times v"]
    assert conformance(bare, architecture=found, checks=mixes).passed


# --- attention that is written to afterwards -----------------------------------------------------


class Overwriting(modeling_llama.LlamaDecoderLayer):
    """A layer that adds the stream into attention's output tensor."""

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        mid, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        mid += hidden_states
        return mid + self.mlp(self.post_attention_layernorm(mid))


def test_attention_that_is_overwritten_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "LlamaDecoderLayer", Overwriting)
    block = LLAMA.block
    assert isinstance(block.attn, Attention)  # type: ignore[union-attr]
    attn = replace(block.attn, overwritten=True)  # type: ignore[union-attr]
    right = replace(LLAMA, block=replace(block, attn=attn))  # type: ignore[type-var]
    bare: Any = tiny_model(right)
    wanted: list[Tensor] = []
    layer = bare.model.layers[1].self_attn
    handle = layer.register_forward_hook(lambda _, args, out: wanted.append(out[0].clone()))
    _, cache = lensbridge.load(bare, architecture=right).run_with_cache(IDS)
    handle.remove()
    assert torch.equal(cache["attn_out", 1], wanted[0].detach())
    fast = [check for check in CHECKS if check.name in ("the stream adds up", "values are finite")]
    assert conformance(bare, architecture=right, checks=fast).passed
    assert "was written to after" in Subject(bare, inputs_for(bare), LLAMA).unreadable
    derived = derive(bare).architecture
    assert derived is not None
    assert derived.block.attn.overwritten  # type: ignore[union-attr]


# --- the descriptions ----------------------------------------------------------------------------


@pytest.mark.matrix
@pytest.mark.parametrize("name", NAMES)
def test_wrong_descriptions_with_these_words_are_rejected(name: str) -> None:
    assert not survivors(described(name))


@pytest.mark.parametrize(
    ("name", "word", "check"),
    [
        ("axk2", "Norms.gate", "norms compute their formula"),
        ("longcat_flash", "LatentQKV.kv_scale", "projections make q, k and v"),
        ("longcat_flash", "Attention.q_scale", "rotary keeps lengths"),
        ("zaya", "Attention.sum_bias", "the stream adds up"),
        ("zaya", "MoE.sum_bias", "the stream adds up"),
    ],
)
def test_a_forgotten_word_is_rejected(name: str, word: str, check: str) -> None:
    right = described(name)
    model = tiny_model(right)
    wrong = without(right, word)
    assert wrong != right
    chosen = next(one for one in CHECKS if one.name == check)
    assert run_check(chosen, Subject(model, inputs_for(model), right)).status == "passed"
    assert run_check(chosen, Subject(model, inputs_for(model), wrong)).status == "failed"


def without(node: Any, word: str) -> Any:
    """A description in which a word is said nowhere."""
    if isinstance(node, tuple):
        return tuple(without(one, word) for one in node)
    if not hasattr(node, "__dataclass_fields__"):
        return node
    held = {name: without(value, word) for name, value in vars(node).items()}
    owner, _, name = word.partition(".")
    return replace(node, **{**held, **({name: None} if type(node).__name__ == owner else {})})

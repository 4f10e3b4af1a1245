"""Gradients and Jacobians against autograd on the bare model, with raw hooks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from described import of_class
from lensbridge_adapters import lensbridge_architectures
from tiny_models import Layer, Shape, build, split_heads, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import InputError, UnknownPointError
from lensbridge.testing import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = partial(of_class, dtype=torch.float64)

IDS = tokens()


def number(logits: Tensor) -> Tensor:
    """Something of every logit, so that no gradient is zero by accident."""
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return (logits * weights).sum() + logits[:, -1].logsumexp(-1).sum()


def with_grads(
    model: nn.Module, ends: dict[str, tuple[nn.Module, str]], of: Callable[[Any], Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """A module's input or output and its `.grad`, by `retain_grad` on the bare model."""
    kept: dict[str, Tensor] = {}

    def before(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            mine = (args[0] if args else kwargs["hidden_states"]).clone()
            mine.retain_grad()
            kept[name] = mine
            if args:
                return (mine, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": mine}

        return hook

    def after(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            mine = (output[0] if isinstance(output, tuple) else output).clone()
            mine.retain_grad()
            kept[name] = mine
            return (mine, *output[1:]) if isinstance(output, tuple) else mine

        return hook

    handles = []
    for name, (module, side) in ends.items():
        if side == "input":
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(after(name)))
    try:
        of(model(IDS)).backward()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad()
    return {name: (one.detach(), one.grad) for name, one in kept.items() if one.grad is not None}


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "neox_sequential"])
def test_gradients_are_those_of_the_bare_model(family: str) -> None:
    shape = Shape(family, dtype=torch.float64)
    hf = build(shape)
    layer, last = Layer(hf, family, 0), Layer(hf, family, 1)
    raw = with_grads(
        hf,
        {
            "blocks.0.hook_resid_post": (layer.block, "output"),
            "blocks.1.attn.hook_z": (last.o, "input"),
            "blocks.1.mlp.hook_post": (last.down, "input"),
            "q": (layer.qkv["q"], "output"),
        },
        lambda out: number(out.logits),
    )
    model = lensbridge.load(hf)
    names = [*(name for name in raw if name != "q"), "blocks.0.attn.hook_q"]
    value, grads = model.gradients(IDS, names, number)

    with torch.no_grad():
        torch.testing.assert_close(value, number(hf(IDS).logits))
    for name in names[:-1]:
        torch.testing.assert_close(grads[name], raw[name][1].view_as(grads[name]))
    # the raw gradient of a fused projection has shares of q, k and v
    torch.testing.assert_close(grads["q", 0], split_heads(raw["q"][1], shape, "q"))
    assert all(parameter.grad is None for parameter in hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


def test_the_loss_and_activations_on_request() -> None:
    hf = build(Shape("llama", dtype=torch.float64))
    layer = Layer(hf, "llama", 1)
    raw = with_grads(
        hf,
        {"blocks.1.hook_resid_post": (layer.block, "output")},
        lambda out: torch.nn.functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
        ),
    )["blocks.1.hook_resid_post"]
    model = lensbridge.load(hf)
    found = model.gradients(IDS, ("resid_post", 1), return_activations=True)
    torch.testing.assert_close(found.gradients["resid_post", 1], raw[1])
    torch.testing.assert_close(found.activations["resid_post", 1], raw[0])
    product = model.activation_x_gradient(IDS, ("resid_post", 1))
    torch.testing.assert_close(product["resid_post", -1], raw[0] * raw[1])


@pytest.mark.parametrize(
    "name",
    [
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "GPTJForCausalLM",
        "PhiForCausalLM",
        "CohereForCausalLM",
        "FalconForCausalLM",
        "Gemma2ForCausalLM",
        "BertForMaskedLM",
        "GraniteForCausalLM",
    ],
)
def test_what_the_branches_read_makes_up_the_gradient_of_the_stream(name: str) -> None:
    """The stream's gradient is the skip's and the branches', also where one norm serves two."""
    model, at = tiny(name), "blocks.1"
    parallel = model.native.blocks[1].residual == "parallel"
    sums = model.native.blocks[1].residual == "post_norm"
    inputs = [f"{at}.hook_{letter}_input" for letter in "qkv"]
    _, heads = model.gradients(IDS, inputs, number)
    _, branches = model.gradients(IDS, [f"{at}.hook_attn_in", f"{at}.hook_mlp_in"], number)
    _, stream = model.gradients(IDS, [f"{at}.hook_resid_pre"], number)
    attn = sum(heads[one].sum(-2) for one in inputs)
    torch.testing.assert_close(attn, branches[f"{at}.hook_attn_in"], rtol=1e-5, atol=1e-6)
    if parallel:
        _, after = model.gradients(IDS, [f"{at}.hook_resid_post"], number)
        whole = after[f"{at}.hook_resid_post"] + attn + branches[f"{at}.hook_mlp_in"]
        torch.testing.assert_close(stream[f"{at}.hook_resid_pre"], whole, rtol=1e-5, atol=1e-6)
    elif not sums:
        _, middle = model.gradients(IDS, [f"{at}.hook_resid_mid"], number)
        whole = middle[f"{at}.hook_resid_mid"] + attn
        torch.testing.assert_close(stream[f"{at}.hook_resid_pre"], whole, rtol=1e-5, atol=1e-6)


def test_what_the_mlp_reads_where_the_skip_reads_the_norm_too() -> None:
    """BLOOM may take its skip behind the norm: an edit for the MLP leaves that alone."""
    architecture = next(a for a in lensbridge_architectures() if a.name == "bloom_skip_norm")
    hf: Any = tiny_model(architecture, dtype=torch.float64)
    model, block, point = lensbridge.load(hf), hf.transformer.h[1], "blocks.1.hook_mlp_in"
    _, cache = model.run_with_cache(IDS, [point])
    stream = cache[point].clone().requires_grad_()

    def normed(_: nn.Module, args: Any) -> Any:
        return (block.post_attention_layernorm.forward(stream * 3), *args[1:])

    handle = block.mlp.dense_h_to_4h.register_forward_pre_hook(normed)
    wanted = hf(IDS).logits
    handle.remove()
    edited = model.run_with_hooks(IDS, [(point, lambda value, hook: value * 3)])
    torch.testing.assert_close(edited, wanted)
    (grad,) = torch.autograd.grad(number(wanted), stream)
    with model.hooks([(point, lambda value, hook: value * 3)]):
        _, grads = model.gradients(IDS, [point], number)
    torch.testing.assert_close(grads[point] * 3, grad)


# --- Jacobians -----------------------------------------------------------------------------------


TOGETHER = (
    "GPT2LMHeadModel",
    "BertForMaskedLM",
    "CohereForCausalLM",
    "Olmo2ForCausalLM",
    "GraniteForCausalLM",
    "BitNetForCausalLM",
    "FalconH1ForCausalLM",
    "T5ForConditionalGeneration",
)


@pytest.mark.parametrize("name", TOGETHER)
def test_gradients_at_many_points_together_are_those_at_each_alone(name: str) -> None:
    """Points that go around one another too: heads' inputs and the norm they are read through."""
    model, ids = tiny(name), {"input_ids": IDS}
    given: dict[str, Any] = {"decoder_input_ids": IDS} if "T5" in name else {}
    front = "decoder.1." if "T5" in name else "blocks.1."
    names = [
        one
        for one, site in model.engine.sites.items()
        if one.startswith((front, "ln_final")) and site.editable
    ]
    _, grads = model.gradients(ids, names, number, **given)
    for one in names:
        added: list[Tensor] = []

        def add(value: Tensor, hook: Any, added: list[Tensor] = added) -> Tensor:
            added.append(torch.zeros_like(value).requires_grad_())
            return value + added[0]

        value = number(model.run_with_hooks(ids, [(one, add)], **given))  # type: ignore[arg-type]
        (wanted,) = torch.autograd.grad(value, added)
        size = max(1.0, float(wanted.nan_to_num().abs().max()))
        torch.testing.assert_close(grads[one], wanted, rtol=0, atol=2e-4 * size, equal_nan=True)


def test_gradients_of_activations() -> None:
    """A neuron's gradient at what made it, and of several points at once."""
    model = lensbridge.load(build(Shape("gpt2", dtype=torch.float64)))

    def neuron(cache: Any) -> Tensor:
        return cache["mlp_post", 1][0, -1, 3]

    value, grads = model.gradients(IDS, ["resid_pre", "mlp_pre"], neuron, at=("mlp_post", 1))
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        activation.requires_grad_() if activation.is_leaf else activation.retain_grad()
        kept[hook.name] = activation

    names = [f"blocks.{i}.{one}" for i in (0, 1) for one in ("hook_resid_pre", "mlp.hook_pre")]
    model.run_with_hooks(IDS, [([*names, "blocks.1.mlp.hook_post"], keep)])
    wanted = kept["blocks.1.mlp.hook_post"][0, -1, 3]
    torch.testing.assert_close(value, wanted.detach())
    raw = torch.autograd.grad(wanted, [kept[name] for name in names], allow_unused=True)
    for name, grad in zip(names, raw, strict=True):
        torch.testing.assert_close(grads[name], grad)
    both = model.gradients(
        IDS,
        ("resid_pre", 0),
        lambda cache: cache["resid_post", 0].sum() + cache["resid_post", 1].sum(),
        at=["resid_post"],
        return_activations=True,
    )
    each = [
        model.gradients(IDS, ("resid_pre", 0), lambda c, i=i: c["resid_post", i].sum(), at=[one])
        for i, one in enumerate(["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
    ]
    torch.testing.assert_close(
        both.gradients["resid_pre", 0], sum(one.gradients["resid_pre", 0] for one in each)
    )
    assert set(both.activations) == {"blocks.0.hook_resid_pre"}


def test_models_that_write_into_their_state_have_gradients() -> None:
    model = tiny("RwkvForCausalLM")
    _, grads = model.gradients(IDS, "hook_embed", number)
    embeds = model.hf_model.get_input_embeddings()(IDS).detach().requires_grad_()
    out = model.hf_model(inputs_embeds=embeds, use_cache=False)
    (wanted,) = torch.autograd.grad(number(out.logits), embeds)
    torch.testing.assert_close(grads["hook_embed"], wanted)
    said = {"input_ids": IDS, "use_cache": False}
    torch.testing.assert_close(model.gradients(said, "hook_embed", number)[1]["hook_embed"], wanted)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_the_jacobian_of_a_block_is_autograds(family: str, chunk: int | None) -> None:
    hf = build(Shape(family, dtype=torch.float64))
    model, block = lensbridge.load(hf), Layer(hf, family, 1).block
    calls: dict[str, Any] = {}
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    with torch.no_grad():
        hf(IDS, use_cache=False)
    handle.remove()
    resid = calls["args"][0]

    def run(given: Tensor) -> Tensor:
        out = block(given, *calls["args"][1:], **calls["kwargs"])
        return out[0] if isinstance(out, tuple) else out

    whole = torch.autograd.functional.jacobian(run, resid)
    wanted = torch.stack([whole[b, -1, :, b, 2:4] for b in range(len(IDS))])
    found = model.jacobian(
        IDS, ("resid_pre", 1), ("resid_post", 1), positions=-1, source_positions=(2, 4), chunk=chunk
    )
    torch.testing.assert_close(found, wanted)
    assert found.shape == (2, resid.shape[-1], 2, resid.shape[-1])


def test_a_jacobian_of_padded_rows_is_that_of_each_alone() -> None:
    model = lensbridge.load(build(Shape("gpt2", dtype=torch.float64)))
    row = IDS[:1, 2:]
    given = {
        "input_ids": torch.cat([torch.tensor([[0, 0]]), row], 1),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]]),
    }
    ends: tuple[Any, Any] = (("q", 0), ("z", 1))
    alone = model.jacobian(row, *ends, positions=-1, source_positions=-2)
    padded = model.jacobian(given, *ends, positions=-1, source_positions=-2)
    torch.testing.assert_close(alone, padded)


def test_bad_requests() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    hooks = sum(len(m._forward_hooks) for m in model.hf_model.modules())
    with pytest.raises(InputError, match="one number"):
        model.gradients(IDS, "z", lambda logits: logits[:, -1, 0])
    with pytest.raises(InputError, match="has no gradient with respect to the logits"):
        model.gradients(IDS, "z", lambda logits: logits.detach().sum())
    with pytest.raises(InputError, match="index out of range; the logits are"):
        model.gradients(IDS, "z", lambda logits: logits[0, 99, 0])
    with pytest.raises(UnknownPointError, match="hook_z"):
        model.gradients(IDS, "blocks.0.attn.hook_zz")
    with pytest.raises(InputError, match="does not depend"):
        model.jacobian(IDS, ("resid_post", 1), ("resid_pre", 1), positions=0)
    with pytest.raises(InputError, match="chunk is 1 or more"):
        model.jacobian(IDS, ("resid_pre", 1), ("resid_post", 1), chunk=0)
    with pytest.raises(InputError, match="has 7 positions; 9 is out of"):
        model.jacobian(IDS, ("resid_pre", 1), ("resid_post", 1), positions=9)
    with pytest.raises(InputError, match="not 'los'"):
        model.gradients(IDS, "z", "los")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a function of the logits"):
        model.gradients(IDS, "z", at="resid_post")
    with pytest.raises(InputError, match="no gradient with respect to the activations"):
        model.gradients(IDS, "z", lambda cache: cache["z", 1].detach().sum(), at="z")
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        model.gradients(IDS, "z")
    assert hooks == sum(len(m._forward_hooks) for m in model.hf_model.modules())


def test_numbers_of_experts_have_none() -> None:
    model = tiny("MixtralForCausalLM")
    _, grads = model.gradients(IDS, None)
    indices = "blocks.0.mlp.hook_expert_indices"
    assert indices not in grads
    assert "blocks.0.mlp.hook_expert_weights" in grads
    with pytest.raises(InputError, match="indices of the chosen experts"):
        model.gradients(IDS, indices)
    with pytest.raises(InputError, match="indices of the chosen experts"):
        model.jacobian(IDS, ("resid_pre", 0), indices)


def test_the_jacobian_of_a_stream_of_several_rows() -> None:
    model, ids = tiny("Gemma3nForCausalLM"), tokens(2, 3)
    ends = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"
    found = model.jacobian(ids, *ends, positions=-1)
    assert found.shape == (2, 2, 32, 2, 3, 32)
    _, grads = model.gradients(ids, ends[0], lambda c: c[ends[1]][1, :, -1, 3].sum(), at=ends[1])
    wanted = grads[ends[0]].movedim(1, 0)
    torch.testing.assert_close(found[:, 1, 3], wanted, rtol=1e-4, atol=1e-5)


def test_one_run_does_not_give_gradients_that_it_cuts_off() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    names = ["blocks.0.ln1.hook_normalized", "blocks.0.hook_q_input"]
    with pytest.raises(InputError, match=r"call model\.gradients"):
        model.run_with_cache(tokens(), names, incl_bwd=True, return_type="loss")
    gradients = model.gradients(tokens(), names).gradients
    assert all(gradients[name].abs().max() > 0 for name in names)

"""Editing: what a hook puts in reaches everyone who reads that value, and nobody else.

The oracle is a function from a value at a point to the bare model's logits: plain PyTorch hooks put
the value where it belongs, and what is not native is worked out from the formula.
"""

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from hypothesis import given
from raw import Attention, Recording, record, run_replacing
from test_reading import expected_points
from tiny_models import (
    FAMILIES,
    Layer,
    Shape,
    affine_by_hand,
    build,
    embed_of,
    final_norm_of,
    join_heads,
    shapes,
    split_heads,
    tokens,
)
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import EditError

LENGTH = 5


class Oracle:
    """Logits of the bare model when one point has another value."""

    def __init__(self, model: nn.Module, shape: Shape, ids: Tensor) -> None:
        self.model = model
        self.shape = shape
        self.ids = ids
        with torch.no_grad():
            self.recording: Recording = record(model, input_ids=ids)
            self.points = expected_points(model, shape, self.recording, None)

    def _replacing(self, module: nn.Module, side: str, value: Tensor) -> Tensor:
        return run_replacing(self.model, module, side, value, input_ids=self.ids)

    def logits(self, name: str, value: Tensor) -> Tensor:
        """Differentiable in `value`."""
        if not name.startswith("blocks."):
            return self._outside(name, value)
        _, index, rest = name.split(".", 2)
        layer = Layer(self.model, self.shape.family, int(index))
        plain = {
            "hook_resid_pre": (layer.block, "input"),
            "hook_attn_in": (layer.ln1, "input"),
            "ln1.hook_out": (layer.ln1, "output"),
            "hook_attn_out": (layer.attn, "output"),
            "hook_mlp_in": (layer.ln2, "input"),
            "ln2.hook_out": (layer.ln2, "output"),
            "mlp.hook_pre": (layer.gate or layer.up, "output"),
            "mlp.hook_pre_linear": (layer.up, "output"),
            "mlp.hook_post": (layer.down, "input"),
            "hook_mlp_out": (layer.mlp, "output"),
            "hook_resid_post": (layer.block, "output"),
        }
        if rest in plain:
            return self._replacing(*plain[rest], value)
        if rest.startswith("attn."):
            return self._attention(int(index), layer, rest.removeprefix("attn.hook_"), value)
        if rest.startswith("ln"):
            norm = layer.ln1 if rest.startswith("ln1") else layer.ln2
            return self._norm(norm, rest, value)
        if rest == "hook_resid_mid":
            written = layer.mlp(layer.ln2(value))
            return self._replacing(layer.block, "output", value + written)
        return self._head_input(layer, rest.removeprefix("hook_")[0], value)

    def _outside(self, name: str, value: Tensor) -> Tensor:
        if name == "hook_logits":
            return value
        if name.startswith("ln_final"):
            norm = final_norm_of(self.model, self.shape.family)
            if name.endswith("hook_out"):
                return self._replacing(norm, "output", value)
            return self._norm(norm, name, value)
        if name == "hook_pos_embed":
            return self._replacing(self.model.transformer.wpe, "output", value)
        return self._replacing(embed_of(self.model, self.shape.family), "output", value)

    def _norm(self, norm: nn.Module, name: str, value: Tensor) -> Tensor:
        if name.endswith("hook_scale"):
            x = self.recording.inputs[norm]
            x = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
            value = x / value
        return self._replacing(norm, "output", affine_by_hand(norm, value))

    def _attention(self, index: int, layer: Layer, role: str, value: Tensor) -> Tensor:
        if role in "qkv":
            whole = self.recording.outputs[layer.qkv[role]]
            joined = join_heads(whole, value, self.shape, role)
            return self._replacing(layer.qkv[role], "output", joined)
        if role == "z":
            return self._replacing(layer.o, "input", rearrange(value, "b p h d -> b p (h d)"))
        if role == "result":
            bias = 0 if layer.o.bias is None else layer.o.bias
            return self._replacing(layer.o, "output", value.sum(2) + bias)
        role = {"attn_scores": "scores"}.get(role, role)
        attention = Attention.of(
            self.model, self.shape, index, self.recording, None, **{role: value}
        )
        return self._replacing(layer.o, "input", attention.z)

    def _head_input(self, layer: Layer, role: str, value: Tensor) -> Tensor:
        whole = self.recording.outputs[layer.qkv[role]]
        heads = [
            split_heads(layer.qkv[role](layer.ln1(value[:, :, h])), self.shape, role)[:, :, h]
            for h in range(value.shape[2])
        ]
        joined = join_heads(whole, torch.stack(heads, 2), self.shape, role)
        return self._replacing(layer.qkv[role], "output", joined)


def nudged(value: Tensor) -> Tensor:
    """Another value: one row, one position, one head (where there is one) moved.

    Not along the value or evenly, since a norm would undo that.
    """
    other = value.clone()
    if value.ndim == 3:
        slot = other[-1, 2]
    else:  # [b, h, q, k] is square at its end; no [b, p, n, d] is, by these sizes
        square = value.shape[2] == value.shape[3] == LENGTH
        slot = other[-1, -1, 2] if square else other[-1, 2, -1]
    seen = slot > -torch.inf
    slot[seen] += torch.linspace(-0.5, 0.7, int(seen.sum())) if seen.sum() > 1 else 0.7
    return other


def as_hook(change: Callable[[Tensor], Tensor], in_place: bool) -> Callable:
    def hook(value: Tensor, hook) -> Tensor | None:
        new = change(value)
        if not in_place:
            return new
        value.copy_(new)
        return None

    return hook


@given(shapes())
def test_an_edit_at_every_point_acts_as_in_the_bare_model(shape: Shape) -> None:
    ids = tokens(2, LENGTH)
    oracle = Oracle(build(shape), shape, ids)
    model = lensbridge.load(build(shape))
    with torch.no_grad():
        bare = model(ids)
        for name in model.hook_names:
            expected = oracle.logits(name, nudged(oracle.points[name]))
            returned = model.run_with_hooks(ids, fwd_hooks=[(name, as_hook(nudged, False))])
            in_place = model.run_with_hooks(ids, fwd_hooks=[(name, as_hook(nudged, True))])
            torch.testing.assert_close(
                returned, expected, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: n + m
            )
            assert torch.equal(returned, in_place), name
            assert not torch.equal(returned, bare), name
        assert torch.equal(model(ids), bare)


@given(shapes())
def test_writing_back_what_was_read_changes_no_bit(shape: Shape) -> None:
    ids = tokens(2, LENGTH)
    model = lensbridge.load(build(shape))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            bare = model.hf_model(ids).logits
            for name in model.hook_names:
                hooks = [(name, lambda value, hook: value)]
                assert torch.equal(model.run_with_hooks(ids, fwd_hooks=hooks), bare), name
            everywhere = [(model.hook_names, lambda value, hook: value.clone())]
            assert torch.equal(model.run_with_hooks(ids, fwd_hooks=everywhere), bare)


@given(shapes())
def test_gradients_at_every_point_are_autograds_of_the_bare_model(shape: Shape) -> None:
    ids = tokens(2, LENGTH)
    oracle = Oracle(build(shape), shape, ids)
    model = lensbridge.load(build(shape))
    weights = torch.randn(2, LENGTH, 61)
    for name in model.hook_names:
        leaf = oracle.points[name].clone().requires_grad_()
        expected = torch.autograd.grad((oracle.logits(name, leaf) * weights).sum(), leaf)[0]
        kept: dict[str, Tensor] = {}
        seen: list[Tensor] = []

        def keep(value: Tensor, hook, kept=kept) -> None:
            value.retain_grad()
            kept["value"] = value

        def watch(grad: Tensor, hook, seen=seen) -> None:
            seen.append(grad)

        logits = model.run_with_hooks(ids, fwd_hooks=[(name, keep)], bwd_hooks=[(name, watch)])
        (logits * weights).sum().backward()
        assert torch.equal(kept["value"].grad, seen[0]), name
        masked = expected.isnan() | (oracle.points[name] == -torch.inf)
        torch.testing.assert_close(
            kept["value"].grad.masked_fill(masked, 0),
            expected.masked_fill(masked, 0),
            rtol=2e-3,
            atol=2e-3,
            msg=lambda m, n=name: n + m,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_incl_bwd_keeps_the_same_gradients_and_leaves_parameters_alone(family: str) -> None:
    shape = Shape(family)
    ids = tokens(2, LENGTH)
    model = lensbridge.load(build(shape))
    # a head input has its own way to the projection, past the points of ln1
    names = [name for name in model.hook_names if not name.endswith("_input")]
    loss, cache = model.run_with_cache(ids, names_filter=names, incl_bwd=True, return_type="loss")
    assert all(parameter.grad is None for parameter in model.parameters())
    oracle = Oracle(build(shape), shape, ids)
    bare_loss = oracle.model(ids, labels=ids).loss
    torch.testing.assert_close(loss, bare_loss, rtol=1e-5, atol=1e-5)
    for name in names:
        leaf = oracle.points[name].clone().requires_grad_()
        logits = oracle.logits(name, leaf)
        flat = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        expected = torch.autograd.grad(flat, leaf)[0]
        masked = expected.isnan() | (leaf == -torch.inf)
        torch.testing.assert_close(
            cache[name + "_grad"].masked_fill(masked, 0),
            expected.masked_fill(masked, 0),
            rtol=1e-3,
            atol=1e-4,
            msg=lambda m, n=name: n + m,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backward_hook_changes_the_gradient_that_goes_on(family: str) -> None:
    model = lensbridge.load(build(Shape(family)))
    ids = tokens(2, LENGTH)
    kept = {}

    def keep(value: Tensor, hook) -> None:
        value.retain_grad()
        kept[hook.name] = value

    def stop(grad: Tensor, hook) -> Tensor:
        return torch.zeros_like(grad)

    last = model.cfg.n_layers - 1
    logits = model.run_with_hooks(
        ids,
        fwd_hooks=[(("resid_pre", 0), keep)],
        bwd_hooks=[(("resid_post", last), stop)],
    )
    logits.sum().backward()
    assert kept["blocks.0.hook_resid_pre"].grad.abs().max() == 0


def test_backward_hooks_work_on_a_frozen_model() -> None:
    hf = build(Shape("llama")).requires_grad_(False)
    model = lensbridge.load(hf)
    grads = {}

    def watch(grad: Tensor, hook) -> None:
        grads[hook.name] = grad

    names = ["blocks.0.attn.hook_pattern", "blocks.1.mlp.hook_post"]
    logits = model.run_with_hooks(tokens(), bwd_hooks=[(names, watch)])
    logits.square().sum().backward()
    assert set(grads) == set(names)
    assert all(grad.abs().max() > 0 for grad in grads.values())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "neox"])
def test_an_edit_of_resid_mid_reaches_the_skip_connection(family: str) -> None:
    model = lensbridge.load(build(Shape(family)))
    ids = tokens()
    with torch.no_grad(), model.hooks(fwd_hooks=[(("resid_mid", 0), lambda v, hook: v * 0)]):
        _, cache = model.run_with_cache(ids)
    assert cache["resid_mid", 0].abs().max() == 0
    assert torch.equal(cache["resid_post", 0], cache["mlp_out", 0])


def test_a_reader_before_an_edit_keeps_what_was_there() -> None:
    """resid_mid is written in place: what a cache holds of it must not change under it."""
    model = lensbridge.load(build(Shape("gpt2")))
    ids = tokens()
    seen = {}

    def look(value: Tensor, hook) -> None:
        seen["before"] = value

    with torch.no_grad():
        _, plain = model.run_with_cache(ids)
        model.add_hook(("resid_mid", 0), look)
        model.add_hook(("resid_mid", 0), lambda v, hook: v + 1)
        _, edited = model.run_with_cache(ids)
        model.reset_hooks()
    assert torch.equal(seen["before"], plain["resid_mid", 0])
    assert torch.equal(edited["resid_mid", 0], plain["resid_mid", 0] + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_editing_one_head_moves_that_head_there_and_nothing_earlier(family: str) -> None:
    model = lensbridge.load(build(Shape(family)))
    ids = tokens(2, 6)

    def edit(q: Tensor, hook) -> Tensor:
        q[:, 3, 1] += 1.0
        return q

    with torch.no_grad():
        _, plain = model.run_with_cache(ids)
        with model.hooks(fwd_hooks=[(("q", 0), edit)]):
            _, edited = model.run_with_cache(ids)
    moved = (plain["z", 0] != edited["z", 0]).any(-1)
    assert moved[:, 3, 1].all()
    moved[:, 3, 1] = False
    assert not moved.any()
    assert torch.equal(plain["resid_post", -1][:, :3], edited["resid_post", -1][:, :3])


@pytest.mark.parametrize("family", FAMILIES)
def test_with_one_token_z_is_v(family: str) -> None:
    shape = Shape(family)
    model = lensbridge.load(build(shape))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens(2, 1))
    v = cache["v", 0].repeat_interleave(shape.heads // shape.kv, dim=2)
    torch.testing.assert_close(cache["z", 0], v)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edits_inside_attention_act_in_a_cached_decode_step(family: str, kernel: str) -> None:
    """One query position: transformers packs grouped heads beside each other there."""
    from transformers import DynamicCache

    shape = Shape(family, heads=6, kv_heads=2, kernel=kernel)
    hf = build(shape)
    model = lensbridge.load(hf)
    ids = tokens(2, 6)

    def last_only(pattern: Tensor, hook) -> Tensor:
        pattern = torch.zeros_like(pattern)
        pattern[:, 1, -1, -1] = 1.0
        return pattern

    hooks = [(("pattern", 0), last_only), (("rot_q", 1), lambda q, hook: q * 1.3)]
    hooks = hooks if family != "gpt2" else hooks[:1]

    def only_last_row(pattern: Tensor, hook) -> Tensor:
        pattern[:, :, -1] = 0
        pattern[:, 1, -1, -1] = 1.0
        return pattern

    def only_last_query(q: Tensor, hook) -> Tensor:
        q[:, -1] *= 1.3
        return q

    in_full = [(("pattern", 0), only_last_row), (("rot_q", 1), only_last_query)]
    with torch.no_grad():
        full = model.run_with_hooks(ids, fwd_hooks=in_full[: len(hooks)])
        past = DynamicCache(config=hf.config)
        model(ids[:, :-1], past_key_values=past)
        step = model.run_with_hooks(ids[:, -1:], fwd_hooks=hooks, past_key_values=past)
    torch.testing.assert_close(step[:, 0], full[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda v: v[:1], ["(1, 7, 4, 6)", "(2, 7, 4, 6)", "b p h d"]),
        (lambda v: v.double(), ["float64", "float32", "to(activation.dtype)"]),
        (lambda v: 3.0, ["float", "return a tensor"]),
        (lambda v: v.flatten(2), ["(2, 7, 24)"]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(returned, words: list[str]) -> None:
    model = lensbridge.load(build(Shape("llama")))
    with pytest.raises(EditError) as caught:
        model.run_with_hooks(tokens(), fwd_hooks=[(("z", 1), lambda v, hook: returned(v))])
    for word in ["blocks.1.attn.hook_z", *words]:
        assert word in str(caught.value)

"""`HookPoint` and `HookedRootModule` on modules of one's own, against plain torch and autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lensbridge.compat.transformer_lens import (
    HookedRootModule,
    HookedTransformer,
    HookedTransformerConfig,
    HookPoint,
)
from lensbridge.errors import EditError, HookError, UnknownPointError


class Net(HookedRootModule):
    """Two linear maps with a point behind each, the first in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"up": nn.Linear(3, 4), "hook_mid": HookPoint()})
        self.down = nn.Linear(4, 2)
        self.hook_out = HookPoint()
        self.setup()

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_out(self.down(self.inner["hook_mid"](self.inner["up"](x)).relu()))


X = torch.linspace(-1, 1, 6).view(2, 3)


@pytest.fixture
def net() -> Net:
    return Net()


def mid(net: Net) -> Tensor:
    return net.inner["up"](X)


def rest(net: Net, value: Tensor) -> Tensor:
    return net.down(value.relu())


def test_setup_names_modules_and_points(net: Net) -> None:
    assert list(net.hook_dict) == ["inner.hook_mid", "hook_out"]
    assert net.hook_dict["inner.hook_mid"].name == "inner.hook_mid"
    assert net.mod_dict["inner.up"] is net.inner["up"]


@pytest.mark.parametrize("returns", [True, False])
def test_editing_in_place_and_returning_are_the_same(net: Net, returns: bool) -> None:
    def edit(value: Tensor, hook: HookPoint) -> Tensor | None:
        if returns:
            return value * 3
        value *= 3
        return None

    found = net.run_with_hooks(X, fwd_hooks=[("inner.hook_mid", edit)])
    assert torch.equal(found, rest(net, mid(net) * 3))
    assert torch.equal(net(X), rest(net, mid(net)))


def test_an_edit_after_a_cache_leaves_the_cache_alone(net: Net) -> None:
    cache = net.add_caching_hooks()
    net.add_hook("inner.hook_mid", lambda value, hook: value.zero_())
    net(X)
    assert torch.equal(cache["inner.hook_mid"], mid(net))


def test_a_cache_holds_values_and_gradients(net: Net) -> None:
    net.hook_out.add_hook(lambda value, hook: None)
    wanted = mid(net).detach().requires_grad_()
    rest(net, wanted).sum().backward()
    with net.hooks():
        cache, fwd, bwd = net.get_caching_hooks(incl_bwd=True)
        with net.hooks(fwd, bwd):
            net(X).sum().backward()
    assert torch.equal(cache["inner.hook_mid"], mid(net))
    assert torch.equal(cache["inner.hook_mid_grad"], wanted.grad)
    _, only = net.run_with_cache(X, names_filter=lambda name: "out" in name)
    assert list(only) == ["hook_out"]


@pytest.mark.parametrize("double", [lambda grad, hook: grad * 2, lambda grad, hook: (grad * 2,)])
def test_a_backward_hook_may_change_the_gradient(net: Net, double: Any) -> None:
    with net.hooks(bwd_hooks=[("inner.hook_mid", double)]):
        net(X).sum().backward()
    doubled = net.inner["up"].weight.grad.clone()
    net.zero_grad()
    net(X).sum().backward()
    torch.testing.assert_close(doubled, net.inner["up"].weight.grad * 2)


def test_order_levels_and_permanence(net: Net) -> None:
    seen: list[str] = []

    def note(word: str) -> Any:
        return lambda value, hook: seen.append(word)

    net.add_hook("hook_out", note("second"))
    net.add_hook("hook_out", note("first"), prepend=True)
    net.add_hook("hook_out", note("level"), level=1)
    net.add_perma_hook("hook_out", note("kept"))
    net(X)
    assert seen == ["first", "second", "level", "kept"]
    for reset, left in (
        ({"level": 1}, ["first", "second", "kept"]),
        ({}, ["kept"]),
        ({"including_permanent": True}, []),
    ):
        seen.clear()
        net.reset_hooks(**reset)
        net(X)
        assert seen == left
    assert not net.hook_out.has_hooks()


def test_contexts_nest_and_clean_up_after_errors(net: Net) -> None:
    double = [("hook_out", lambda value, hook: value * 2)]
    with net.hooks(fwd_hooks=double):
        with net.hooks(fwd_hooks=double):
            assert torch.equal(net(X), 4 * rest(net, mid(net)))
        assert torch.equal(net(X), 2 * rest(net, mid(net)))

    def fail(value: Tensor, hook: HookPoint) -> None:
        raise ValueError("from the hook")

    with pytest.raises(ValueError, match="from the hook"):
        net.run_with_hooks(X, fwd_hooks=[("hook_out", fail)])
    assert not net.hook_out.has_hooks()
    assert net.context_level == 0


def test_ctx_stays_until_reset(net: Net) -> None:
    def count(value: Tensor, hook: HookPoint) -> None:
        hook.ctx["runs"] = hook.ctx.get("runs", 0) + 1

    net.add_hook("hook_out", count)
    net(X)
    net(X)
    assert net.hook_out.ctx == {"runs": 2}
    net.reset_hooks()
    assert net.hook_out.ctx == {}


def test_refusals(net: Net) -> None:
    with pytest.raises(UnknownPointError, match="hook_out"):
        net.add_hook("hook_ou", lambda value, hook: None)
    with pytest.raises(HookError, match="sideways"):
        net.hook_out.add_hook(lambda value, hook: None, dir="sideways")
    with pytest.raises(HookError, match="not in a layer"):
        net.hook_out.layer()


# --- points of a model that classic models shape otherwise ---------------------------------------


@pytest.fixture(scope="module")
def small() -> HookedTransformer:
    return HookedTransformer(
        {"n_layers": 2, "d_model": 24, "n_ctx": 16, "d_head": 6, "d_vocab": 40, "act_fn": "relu"}
    )


def test_what_attention_reads_has_a_head_axis(small: HookedTransformer) -> None:
    ids = torch.randint(40, (2, 7))
    small.set_use_attn_in(True)
    seen: list[Tensor] = []

    def halve(value: Tensor, hook: HookPoint) -> Tensor:
        seen.append(value)
        return value / 2

    _, cache = small.run_with_cache(ids)
    copies = cache["blocks.1.hook_attn_in"]
    assert copies.shape == (2, 7, 4, 24)
    assert torch.equal(copies[:, :, 3], cache["resid_pre", 1])
    edited = small.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_attn_in", halve)])
    assert torch.equal(seen[0], copies)
    by_hand = [(f"blocks.1.hook_{one}_input", lambda v, hook: v / 2) for one in "qkv"]
    torch.testing.assert_close(edited, small.run_with_hooks(ids, fwd_hooks=by_hand))
    small.set_use_attn_in(False)


def test_heads_are_not_edited_apart_where_they_read_one_value(small: HookedTransformer) -> None:
    def silence(value: Tensor, hook: HookPoint) -> None:
        value[:, :, 2] = 0

    with pytest.raises(EditError, match="hook_q_input"):
        small.run_with_hooks(torch.arange(5)[None], fwd_hooks=[("blocks.1.hook_attn_in", silence)])


def test_the_tokens_are_a_point_where_the_config_says_so() -> None:
    """As masks of padding are made: the ids are noted, and scores read the note."""
    cfg = {**vars(HookedTransformerConfig(2, 24, 16, 6, d_vocab=40, act_fn="relu", device="cpu"))}
    model = HookedTransformer({**cfg, "attention_dir": "bidirectional", "use_hook_tokens": True})

    def note(tokens: Tensor, hook: HookPoint) -> None:
        hook.ctx["pad"] = tokens == 1

    def mask(scores: Tensor, hook: HookPoint) -> Tensor:
        return scores.masked_fill(model.hook_dict["hook_tokens"].ctx["pad"][:, None, None], -1e5)

    for name, point in model.hook_dict.items():
        if name == "hook_tokens":
            point.add_perma_hook(note)
        elif name.endswith("attn_scores"):
            point.add_perma_hook(mask)
    ids = torch.randint(2, 40, (2, 7))
    padded = torch.cat([ids, torch.ones(2, 2, dtype=torch.long)], -1)
    torch.testing.assert_close(model(padded)[:, :7], model(ids))

    def other(tokens: Tensor, hook: HookPoint) -> Tensor:
        return tokens.flip(-1)

    flipped = model.run_with_hooks(ids, fwd_hooks=[("hook_tokens", other)])
    torch.testing.assert_close(flipped, model(ids.flip(-1)))
    with pytest.raises(HookError, match="no gradient"):
        model.add_hook("hook_tokens", other, "bwd")
    model.reset_hooks(including_permanent=True)
    assert not model.hook_dict["hook_tokens"].has_hooks()
    plain = HookedTransformer(cfg)
    with pytest.raises(UnknownPointError):
        plain.add_hook("hook_tokens", note)

"""The steps of an interpretability course through the TransformerLens layer, on the bundled model.

Attention patterns as pictures take them, detectors of head types, ablation scores, logit
attribution, mean ablation, and an induction circuit read from weights.
"""

from typing import Any

import pytest
import torch
from einops import einsum, rearrange
from torch import Tensor

from lensbridge.compat.transformer_lens import (
    ActivationCache,
    FactoredMatrix,
    HookedTransformer,
    utils,
)
from lensbridge.compat.transformer_lens.hook_points import HookPoint
from lensbridge.errors import WeightError

HALF = 20


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def repeated(model: HookedTransformer) -> Tensor:
    """BOS, then random tokens twice."""
    half = torch.randint(100, 500, (4, HALF), generator=torch.Generator().manual_seed(0))
    bos = torch.full((4, 1), model.tokenizer.bos_token_id)
    return torch.cat([bos, half, half], dim=1)


@pytest.fixture(scope="module")
def cache(model: HookedTransformer, repeated: Tensor) -> ActivationCache:
    with torch.no_grad():
        return model.run_with_cache(repeated)[1]


def close(found: Tensor, wanted: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-4)


def mean_diagonal(pattern: Tensor, offset: int) -> Tensor:
    """Shapes: `[batch, head, query, key]` -> `[head]`"""
    return pattern.diagonal(offset, -2, -1).mean((0, 2))


def test_patterns_as_a_picture_takes_them(model: HookedTransformer) -> None:
    text = "The Eiffel Tower is in the city of"
    tokens = model.to_str_tokens(text)
    _, cache = model.run_with_cache(text, remove_batch_dim=True)
    pattern = cache["pattern", 0]
    assert pattern.shape == (model.cfg.n_heads, len(tokens), len(tokens))
    close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
    assert utils.is_lower_triangular(pattern[0])


def test_a_pattern_is_the_softmax_of_its_queries_and_keys(
    model: HookedTransformer, cache: ActivationCache
) -> None:
    q, k = cache["q", 1], cache["k", 1]
    scores = einsum(q, k, "b q h d, b k h d -> b h q k") / model.cfg.attn_scale
    mask = torch.triu(torch.ones(scores.shape[-2:], dtype=torch.bool), 1)
    close(scores.masked_fill(mask, -torch.inf).softmax(-1), cache["pattern", 1])


def test_heads_by_pattern_from_a_cache_and_from_hooks(
    model: HookedTransformer, repeated: Tensor, cache: ActivationCache
) -> None:
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

    def induction(pattern: Tensor, hook: HookPoint) -> None:
        scores[hook.layer()] = mean_diagonal(pattern, 1 - HALF)

    model.run_with_hooks(
        repeated,
        return_type=None,
        fwd_hooks=[(lambda name: name.endswith("pattern"), induction)],
    )
    from_cache = torch.stack([mean_diagonal(cache["pattern", i], 1 - HALF) for i in range(4)])
    close(scores, from_cache)
    previous = torch.stack([mean_diagonal(cache["pattern", i], -1) for i in range(4)])
    assert scores.max() > 0.5  # the model was trained to copy
    assert previous.max() > 0.25
    assert scores.argmax() // 4 > previous.argmax() // 4  # behind the head that it builds on


def test_loss_is_lower_on_what_was_seen_before(model: HookedTransformer, repeated: Tensor) -> None:
    logits, loss = model(repeated, return_type="both", loss_per_token=True)
    log_probs = logits[:, :-1].log_softmax(-1)
    by_hand = -log_probs.gather(-1, repeated[:, 1:, None])[..., 0]
    close(loss, by_hand)
    assert loss[:, HALF + 1 :].mean() < loss[:, :HALF].mean() - 1


def last_half_loss(model: HookedTransformer, logits: Tensor, ids: Tensor) -> Tensor:
    return model.loss_fn(logits, ids, per_token=True)[:, HALF:].mean()


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablation_scores(
    model: HookedTransformer, repeated: Tensor, cache: ActivationCache, kind: str
) -> None:
    """An ablated head is one whose values' way through W_O is replaced."""

    def ablate(z: Tensor, hook: HookPoint, head: int) -> Tensor:
        z[:, :, head] = 0.0 if kind == "zero" else z[:, :, head].mean(0)
        return z

    before = last_half_loss(model, model(repeated), repeated)
    scores = torch.zeros(4, 4)
    for layer in range(4):
        for head in range(4):
            logits = model.run_with_hooks(
                repeated,
                fwd_hooks=[
                    (
                        utils.get_act_name("z", layer),
                        lambda z, hook, head=head: ablate(z, hook, head),
                    )
                ],
            )
            scores[layer, head] = last_half_loss(model, logits, repeated) - before
    z = cache["z", 3][:, :, 2]
    gone = z if kind == "zero" else z - z.mean(0)
    resid = cache["resid_mid", 3] - gone @ model.W_O[3, 2]
    logits = model.unembed(model.ln_final(resid + model.blocks[3].mlp(model.blocks[3].ln2(resid))))
    close(scores[3, 2], last_half_loss(model, logits, repeated) - before, atol=1e-3)
    assert scores.max() > 0.5


def test_logit_attribution_adds_up(model: HookedTransformer) -> None:
    text = "The Eiffel Tower is in the city of"
    answer = model.to_single_token(" Paris")
    logits, cache = model.run_with_cache(text)
    direction = model.tokens_to_residual_directions(answer)
    close(direction, model.W_U[:, answer])
    parts, labels = cache.get_full_resid_decomposition(
        -1, apply_ln=True, pos_slice=-1, expand_neurons=False, return_labels=True
    )
    assert labels[:2] == ["L0H0", "L0H1"]
    total = (parts @ direction).sum(0)[0] + model.b_U[answer]
    close(total, logits[0, -1, answer], atol=1e-3)
    heads = cache.stack_head_results(-1, pos_slice=-1)
    attributions = cache.logit_attrs(heads, answer, pos_slice=-1, has_batch_dim=True)
    scale = cache["ln_final.hook_scale"][:, -1]
    centred = heads - heads.mean(-1, keepdim=True)
    close(attributions, (centred / scale) @ direction, atol=1e-3)


def test_names_before_and_after_the_swap(model: HookedTransformer) -> None:
    """Direct logit attribution of the names task, per layer and per head."""
    prompt = "Mary gave the ball to John, and John gave the ball to"
    answers = [" Mary", " John"]
    right, wrong = (model.to_single_token(answer) for answer in answers)
    logits, cache = model.run_with_cache(prompt)
    difference = model.W_U[:, right] - model.W_U[:, wrong]
    resid, labels = cache.accumulated_resid(
        layer=-1, incl_mid=True, pos_slice=-1, return_labels=True
    )
    normed = cache.apply_ln_to_stack(resid, layer=-1, pos_slice=-1)
    assert len(labels) == 9
    bias = model.b_U[right] - model.b_U[wrong]
    close(normed[-1, 0] @ difference + bias, logits[0, -1, right] - logits[0, -1, wrong], atol=1e-3)
    per_head = cache.stack_head_results(layer=-1, pos_slice=-1, apply_ln=True)
    grid = rearrange(per_head[:, 0] @ difference, "(l h) -> l h", l=4)
    by_hand = einsum(cache["z", 2][0, -1], model.W_O[2], "h d, h d m -> h m")
    by_hand = by_hand - by_hand.mean(-1, keepdim=True)
    close(grid[2], by_hand / cache["scale"][0, -1] @ difference, atol=1e-3)


def test_an_induction_circuit_from_weights(
    model: HookedTransformer, cache: ActivationCache
) -> None:
    """Copying, positions and K-composition as products of weights."""
    copying = FactoredMatrix(model.W_E @ model.W_V[3, 1], model.W_O[3, 1] @ model.W_U)
    whole = model.W_E @ model.W_V[3, 1] @ model.W_O[3, 1] @ model.W_U
    close(copying.AB, whole, atol=1e-2)
    assert copying.shape == (564, 564)
    some = torch.tensor([5, 80, 300])
    close(
        copying[some, some].AB if copying.ndim > 2 else whole[some][:, some], whole[some][:, some]
    )
    positions = model.W_pos @ model.W_Q[0, 1] @ model.W_K[0, 1].T @ model.W_pos.T
    close(
        (FactoredMatrix(model.W_pos, model.W_pos.T).A @ model.QK[0, 1].AB @ model.W_pos.T),
        positions,
    )
    scores = model.all_composition_scores("K")
    ov = model.W_V[0, 1] @ model.W_O[0, 1]
    qk = model.W_Q[2, 3] @ model.W_K[2, 3].T
    by_hand = (qk @ ov.T).norm() / (qk.norm() * ov.norm())
    close(torch.as_tensor(scores)[0, 1, 2, 3], by_hand)
    assert torch.as_tensor(scores)[2, 1, 0, 3] == 0


def test_keys_split_into_what_earlier_parts_wrote(
    model: HookedTransformer, cache: ActivationCache
) -> None:
    """Queries and keys of a later head are sums over the embedding and what was added since."""
    layer, head = 2, 1
    parts, labels = cache.decompose_resid(layer, return_labels=True)
    assert labels[0] == "embed"
    normed = cache.apply_ln_to_stack(parts, layer=layer)
    keys = einsum(normed, model.W_K[layer, head], "part b p m, m d -> part b p d")
    close(keys.sum(0) + model.b_K[layer, head], cache["k", layer][:, :, head], atol=1e-3)


def test_inputs_of_one_head_are_edited_alone(
    model: HookedTransformer, repeated: Tensor, cache: ActivationCache
) -> None:
    """With split inputs, a key's input changes and queries and values stay."""
    model.set_use_split_qkv_input(True)

    def edit(value: Tensor, hook: HookPoint) -> Tensor:
        value[:, :, 2] = 0.0
        return value

    try:
        with model.hooks(fwd_hooks=[("blocks.1.hook_k_input", edit)]):
            _, edited = model.run_with_cache(repeated)
    finally:
        model.set_use_split_qkv_input(False)
    close(edited["k", 1][:, :, 2], model.b_K[1, 2].expand_as(edited["k", 1][:, :, 2]))
    close(edited["k", 1][:, :, 0], cache["k", 1][:, :, 0])
    close(edited["q", 1], cache["q", 1])
    close(edited["v", 1], cache["v", 1])
    assert "blocks.1.hook_k_input" in edited


@pytest.mark.parametrize("shape", [(6,), (6, 5), (3, 6, 5)])
def test_initial_values_have_their_variance(shape: Any) -> None:
    big = tuple(60 * size if i == len(shape) - 1 else 10 * size for i, size in enumerate(shape))
    fan_in = {1: 1, 2: big[0], 3: big[1] if len(big) == 3 else 0}[len(big)]
    drawn = utils.init_kaiming_normal_(torch.empty(big), nonlinearity="relu")
    assert drawn.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    uniform = utils.init_kaiming_uniform_(torch.empty(big), nonlinearity="relu")
    assert uniform.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
    assert uniform.abs().max() <= 3**0.5 * (2 / fan_in) ** 0.5


def test_a_parameter_is_swapped_for_a_while(model: HookedTransformer) -> None:
    weight = model.hf_model.transformer.wpe.weight
    before = weight.clone()
    with utils.temporarily_swap_parameter(weight, torch.zeros_like(weight)):
        assert (model.W_pos == 0).all()
    assert torch.equal(model.W_pos, before)


def test_nested_names(model: HookedTransformer) -> None:
    module = utils.get_nested_attr(model.hf_model, "transformer.h.1.attn")
    assert module is model.hf_model.transformer.h[1].attn

    class Box: ...

    box = Box()
    box.inner = Box()  # type: ignore[attr-defined]
    utils.set_nested_attr(box, "inner.value", 3)
    assert utils.get_nested_attr(box, "inner.value") == 3


def test_the_state_of_a_part_fills_a_module_of_ones_own() -> None:
    """`mine.load_state_dict(model.blocks[1].mlp.state_dict())`, and back."""
    model = HookedTransformer.from_pretrained_no_processing("demo", device="cpu")
    part, native = model.blocks[1].mlp, model.hf_model.transformer.h[1].mlp
    state = part.state_dict()
    assert sorted(state) == ["W_in", "W_out", "b_in", "b_out"]
    assert torch.equal(state["W_in"], native.c_fc.weight)
    assert sorted(model.blocks[1].attn.state_dict()) == [f"{k}_{n}" for k in "Wb" for n in "KOQV"]
    assert {"ln1.w", "attn.W_O", "mlp.b_in"} <= set(model.blocks[1].state_dict())
    assert torch.equal(model.embed.state_dict()["W_E"], model.hf_model.transformer.wte.weight)
    assert list(model.ln_final.state_dict()) == ["w", "b"]

    class Mine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, one in state.items():
                self.register_parameter(name, torch.nn.Parameter(torch.zeros_like(one)))

        def forward(self, x: Tensor) -> Tensor:
            inner = utils.gelu_new(x @ self.W_in + self.b_in)
            return inner @ self.W_out + self.b_out  # type: ignore[no-any-return]

    mine, x = Mine(), torch.randn(2, 3, model.cfg.d_model)
    mine.load_state_dict(state, strict=True)
    close(mine(x), native(x))
    other = {name: 2 * one for name, one in state.items()}
    part.load_state_dict(other)
    assert torch.equal(native.c_proj.weight, 2 * mine.W_out)
    with pytest.raises(WeightError, match="1 are unknown, such as"):
        part.load_state_dict({**other, "W_up": x})
    with pytest.raises(WeightError, match="1 are missing, such as"):
        part.load_state_dict({name: other[name] for name in list(other)[1:]})

"""The same calls on this package and on TransformerLens 3's `HookedTransformer`: the same numbers.

The bundled model has a tokenizer; the other families are tiny random ones on the same weights.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformer_lens as theirs
import transformer_lens.loading_from_pretrained as their_loading
import transformer_lens.utilities as their_utils
from peers.twins import FAMILIES, twins
from torch import Tensor
from transformer_lens.hook_points import HookPoint as TheirPoint
from transformer_lens.HookedRootModule import HookedRootModule as TheirRoot
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensbridge.compat.transformer_lens as ours
from lensbridge.compat.transformer_lens import utils
from lensbridge.errors import LensbridgeError
from lensbridge.loading import demo_folder

pytestmark = pytest.mark.peers

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "The Galata Tower is in the city of"
BATCH = ["The Eiffel Tower", "Tom and Mary went to the city"]
OFF = dict.fromkeys(
    ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False
)
ON = dict.fromkeys(OFF, True)
ATOL = 2e-4


@contextmanager
def their_config(hf_model: Any) -> Iterator[None]:
    """Their loader asks the hub for a config; it gets this model's."""
    config = copy.deepcopy(hf_model.config)
    config.architectures = [type(hf_model).__name__]
    config.n_ctx = config.n_positions
    with mock.patch.object(their_loading.AutoConfig, "from_pretrained", return_value=config):
        yield


def both(**steps: bool) -> tuple[Any, Any]:
    """The bundled model, loaded by the same call."""
    hf_model = AutoModelForCausalLM.from_pretrained(demo_folder())
    tokenizer = AutoTokenizer.from_pretrained(demo_folder(), add_bos_token=True)
    with their_config(hf_model):
        mine, other = (
            library.HookedTransformer.from_pretrained(
                "gpt2", hf_model=hf_model, tokenizer=tokenizer, device="cpu", **steps
            )
            for library in (ours, theirs)
        )
    return mine, other


@pytest.fixture(scope="module")
def folded() -> tuple[Any, Any]:
    return both()


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Any]:
    return both(**OFF)


def close(mine: Any, other: Any, atol: float = ATOL) -> None:
    torch.testing.assert_close(
        torch.as_tensor(mine), torch.as_tensor(other), atol=atol, rtol=1e-4, equal_nan=True
    )


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["folded", "plain"])
def test_a_cache_has_the_same_names_shapes_and_numbers(
    pair: str, request: pytest.FixtureRequest
) -> None:
    mine, other = request.getfixturevalue(pair)
    (logits, cache), (wanted, known) = (one.run_with_cache(PROMPT) for one in (mine, other))
    close(logits, wanted)
    assert list(cache) == list(known)
    for name in known:
        close(cache[name], known[name])


def test_gated_points_come_with_their_flags(plain: tuple[Any, Any]) -> None:
    names = []
    for one in plain:
        one.set_use_attn_result(True)
        one.set_use_split_qkv_input(True)
        one.set_use_hook_mlp_in(True)
        names.append(one.run_with_cache(PROMPT)[1])
        one.set_use_attn_result(False)
        one.set_use_split_qkv_input(False)
        one.set_use_hook_mlp_in(False)
    mine, other = names
    assert set(mine) == set(other)
    for name in other:
        per_head = ".ln1." in name  # theirs runs the norm once for each head, with equal results
        close(mine[name], other[name][:, :, 0] if per_head else other[name])


OTHERWISE = {
    "GPTJForCausalLM": (".ln2.",),  # one norm for both branches: it is called ln1
    "PhiForCausalLM": (".ln2.",),
    "MixtralForCausalLM": (".experts.", ".hook_expert_"),  # in the router's own shapes
    "Gemma2ForCausalLM": ("unembed.hook_out",),  # theirs is before the soft-cap
    # theirs: embeddings are behind their norm, and a row of scores is shifted as a whole
    "BloomForCausalLM": ("embed", "hook_attn_scores"),
}
"""Parts of names that are not the same thing here; the guide's table says so."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_cache(name: str) -> None:
    hf_model, classic = twins(name)
    model = ours.HookedTransformer.from_pretrained_no_processing(name, hf_model=hf_model)
    ids = torch.randint(3, 97, (2, 9))
    (logits, cache), (wanted, known) = (one.run_with_cache(ids) for one in (model, classic))
    close(logits, wanted)
    elsewhere = OTHERWISE.get(name, ())
    for one in known:
        if not any(part in one for part in elsewhere):
            close(cache[one], known[one])


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPTNeoXForCausalLM", "Gemma2ForCausalLM"])
def test_weights_of_every_family(name: str) -> None:
    hf_model, classic = twins(name)
    model = ours.HookedTransformer.from_pretrained_no_processing(name, hf_model=hf_model)
    for weight in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "W_in", "W_out", "W_U"):
        close(getattr(model, weight), getattr(classic, weight))
    assert type(model.W_Q) is Tensor
    close(model.QK[1, 2].AB, classic.QK[1, 2].AB)
    close(model.OV[1, 2].AB, classic.OV[1, 2].AB)
    for mode in "QKV":
        scores = classic.all_composition_scores(mode)
        close(model.all_composition_scores(mode), scores)


def test_losses(plain: tuple[Any, Any]) -> None:
    mine, other = plain
    close(mine(PROMPT, return_type="loss"), other(PROMPT, return_type="loss"))
    per_token = [one(PROMPT, return_type="loss", loss_per_token=True) for one in plain]
    close(*per_token)
    logits, loss = mine(PROMPT, return_type="both")
    close(loss, other(PROMPT, return_type="both").loss)
    close(logits, other(PROMPT))
    left = [one(BATCH, return_type="loss", padding_side="left") for one in plain]
    close(*left)


def test_ids_that_were_padded_on_the_left_are_masked(plain: tuple[Any, Any]) -> None:
    results = []
    for one in plain:
        with utils.LocallyOverridenDefaults(one, padding_side="left"):
            results.append(one(one.to_tokens(BATCH))[:, -3:])
    close(*results)


def test_a_part_of_the_model(plain: tuple[Any, Any]) -> None:
    mine, other = plain
    resid = [one(PROMPT, stop_at_layer=2) for one in plain]
    close(*resid)
    after = [one(resid[1], start_at_layer=2) for one in plain]
    close(*after)
    for one in plain:
        assert one.input_to_embed(PROMPT)[0].shape == resid[0].shape
    close(mine.input_to_embed(PROMPT)[0], other.input_to_embed(PROMPT)[0])


def test_caches_of_a_part(plain: tuple[Any, Any]) -> None:
    for kwargs in (
        {"names_filter": "blocks.1.attn.hook_z"},
        {"names_filter": lambda name: name.endswith("hook_pattern")},
        {"names_filter": ["blocks.0.hook_resid_pre", "ln_final.hook_scale"]},
        {"remove_batch_dim": True},
        {"pos_slice": -1},
        {"pos_slice": (2, 5)},
        {"stop_at_layer": 2},
        {"return_type": "loss", "incl_bwd": True},
        {"return_cache_object": False},
    ):
        mine, other = (one.run_with_cache(PROMPT, **kwargs)[1] for one in plain)
        assert set(mine) == set(other), kwargs
        for name in other:
            if ".ln1." in name and name.endswith("_grad"):
                continue  # theirs runs this norm for q, k and v, and keeps one gradient of three
            close(mine[name], other[name])
        plain[1].zero_grad()


# --- hooks ---------------------------------------------------------------------------------------


def silence(value: Tensor, hook: Any) -> Tensor:
    value[:, :, 1] = 0
    return value


def double_in_place(value: Tensor, hook: Any) -> None:
    value *= 2


def test_edits(plain: tuple[Any, Any]) -> None:
    for hooks in (
        [("blocks.1.attn.hook_z", silence)],
        [("blocks.0.hook_resid_mid", double_in_place)],
        [(lambda name: name.endswith("hook_v"), silence)],
        [("blocks.2.attn.hook_pattern", double_in_place), ("hook_embed", double_in_place)],
        [("ln_final.hook_normalized", double_in_place)],
        [("unembed.hook_in", double_in_place)],
        [("blocks.3.attn.hook_attn_scores", lambda value, hook: value / 2)],
    ):
        close(*(one.run_with_hooks(PROMPT, fwd_hooks=hooks) for one in plain))


def test_hooks_that_stay_go_by_level_order_and_permanence(plain: tuple[Any, Any]) -> None:
    told: list[list[str]] = []
    for one in plain:
        told.append([])
        seen = told[-1]

        def note(word: str, seen: list[str] = seen) -> Any:
            return lambda value, hook: seen.append(f"{word} {hook.name} {hook.layer()}")

        one.add_hook("blocks.1.hook_resid_pre", note("second"))
        one.add_hook("blocks.1.hook_resid_pre", note("first"), prepend=True)
        one.add_perma_hook("blocks.1.hook_resid_pre", note("kept"))
        one.add_hook("blocks.1.hook_resid_pre", note("level"), level=1)
        one.blocks[2].hook_mlp_out.add_hook(note("by attribute"))
        one(PROMPT)
        one.reset_hooks(level=1)
        seen.append("-")
        one(PROMPT)
        one.reset_hooks()
        seen.append("-")
        one(PROMPT)
        one.reset_hooks(including_permanent=True)
        seen.append("-")
        one(PROMPT)
    assert told[0] == told[1]
    assert told[0].count("-") == 3


def test_contexts_nest_and_backward_hooks_edit(plain: tuple[Any, Any]) -> None:
    seen: list[list[Tensor]] = []
    for one in plain:
        seen.append([])
        grads = seen[-1]

        def halve(grad: Tensor, hook: Any) -> Tensor:
            return (grad / 2,) if one is plain[1] else grad / 2  # noqa: B023

        def keep(grad: Tensor, hook: Any, grads: list[Tensor] = grads) -> None:
            grads.append(grad.clone())

        with one.hooks(fwd_hooks=[("blocks.3.hook_resid_post", double_in_place)]):
            with one.hooks(
                fwd_hooks=[("blocks.1.attn.hook_z", silence)],
                bwd_hooks=[
                    ("blocks.2.hook_resid_pre", halve),
                    ("blocks.0.hook_resid_pre", keep),
                ],
            ):
                loss = one(PROMPT, return_type="loss")
                loss.backward()
            grads.append(loss.detach())
            grads.append(one(PROMPT, return_type="loss").detach())
        grads.append(one(PROMPT, return_type="loss").detach())
    for mine, other in zip(*seen, strict=True):
        close(mine, other)


def test_caching_hooks_by_hand(plain: tuple[Any, Any]) -> None:
    caches = []
    for one in plain:
        cache = one.add_caching_hooks(lambda name: name.endswith("hook_z"))
        one(PROMPT)
        one.reset_hooks()
        made = (ours if one is plain[0] else theirs).ActivationCache(cache, one)
        caches.append(made)
    assert set(caches[0]) == set(caches[1])
    close(caches[0]["z", 2], caches[1]["z", 2])


def test_own_modules_with_points_behave_the_same() -> None:
    def build(root: Any, point: Any) -> Any:
        class Net(root):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.first = torch.nn.Linear(3, 3)
                self.hook_mid = point()
                self.second = torch.nn.Linear(3, 1)
                self.hook_out = point()
                self.setup()

            def forward(self, x: Tensor) -> Tensor:
                return self.hook_out(self.second(self.hook_mid(self.first(x).relu()))).sum()

        torch.manual_seed(0)
        return Net()

    nets = [
        build(ours.HookedRootModule, ours.HookPoint),
        build(TheirRoot, TheirPoint),
    ]
    x = torch.randn(2, 3)
    results = []
    for net in nets:
        _, cache = net.run_with_cache(x, incl_bwd=True)
        edited = net.run_with_hooks(x, fwd_hooks=[("hook_mid", lambda v, hook: v * 2)])
        net.hook_mid.add_perma_hook(lambda v, hook: v + 1)
        net.add_hook("hook_mid", lambda v, hook: v * 3, prepend=True)
        both_on = net(x)
        net.reset_hooks()
        perma = net(x)
        net.reset_hooks(including_permanent=True)
        results.append((list(net.hook_dict), dict(cache), edited, both_on, perma, net(x)))
    mine, other = results
    assert mine[0] == other[0]
    assert set(mine[1]) == set(other[1])
    for name in other[1]:
        close(mine[1][name], other[1][name])
    for one, two in zip(mine[2:], other[2:], strict=True):
        close(one, two)


# --- text ----------------------------------------------------------------------------------------


def test_texts(plain: tuple[Any, Any]) -> None:
    for call in (
        lambda one: one.to_tokens(PROMPT).tolist(),
        lambda one: one.to_tokens(BATCH).tolist(),
        lambda one: one.to_tokens(BATCH, padding_side="left").tolist(),
        lambda one: one.to_tokens(PROMPT, prepend_bos=False).tolist(),
        lambda one: one.to_string(one.to_tokens(PROMPT)),
        lambda one: one.to_string(one.to_tokens(PROMPT)[0]),
        lambda one: one.to_str_tokens(PROMPT),
        lambda one: one.to_str_tokens(BATCH),
        lambda one: one.to_single_token(" Paris"),
        lambda one: one.to_single_str_token(one.to_single_token(" Paris")),
        lambda one: one.get_token_position(" Tower", PROMPT),
        lambda one: one.get_token_position(" Tower", PROMPT, prepend_bos=False),
        lambda one: one.tokenizer.padding_side,
        lambda one: one.cfg.default_prepend_bos,
    ):
        assert call(plain[0]) == call(plain[1])


def test_greedy_generation(plain: tuple[Any, Any]) -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "verbose": False}
    for given in (PROMPT, BATCH):
        assert plain[0].generate(given, **options) == plain[1].generate(given, **options)
    ids = plain[0].to_tokens(PROMPT)
    assert torch.equal(plain[0].generate(ids, **options), plain[1].generate(ids, **options))
    assert plain[0].generate(ids, return_type="str", **options) == plain[1].generate(
        ids, return_type="str", **options
    )


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["folded", "plain"])
def test_weights_and_config(pair: str, request: pytest.FixtureRequest) -> None:
    mine, other = request.getfixturevalue(pair)
    for name in (
        *("W_E", "W_pos", "W_U", "b_U", "W_E_pos", "W_Q", "W_K", "W_V", "W_O"),
        *("b_Q", "b_K", "b_V", "b_O", "W_in", "W_out", "b_in", "b_out"),
    ):
        close(getattr(mine, name), getattr(other, name), atol=5e-4)
    for name, value in other.cfg.to_dict().items():
        if name in vars(mine.cfg) and name not in _SET_BY_EACH:
            assert vars(mine.cfg)[name] == pytest.approx(value, abs=1e-6), name
    assert mine.all_head_labels() == other.all_head_labels()


def test_a_state_goes_over(plain: tuple[Any, Any]) -> None:
    mine, other = plain
    state = other.state_dict()
    assert {name for name in state if not name.endswith((".mask", ".IGNORE"))} - {
        "unembed.b_U"
    } <= set(mine.state_dict())
    fresh = ours.HookedTransformer(
        {**_known(mine.cfg), "normalization_type": "LN", "tie_word_embeddings": False}
    )
    fresh.load_state_dict(state)
    ids = mine.to_tokens(PROMPT)
    close(fresh(ids), other(ids))


_SET_BY_EACH = (
    *("tokenizer_name", "tokenizer_prepends_bos"),
    *("device", "init_weights", "initializer_range", "tie_word_embeddings"),
)


def _known(cfg: Any) -> dict[str, Any]:
    return {
        name: vars(cfg)[name]
        for name in ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "d_vocab")
    } | {"act_fn": "gelu_new", "device": "cpu"}


def test_accumulated_biases_and_directions(folded: tuple[Any, Any]) -> None:
    mine, other = folded
    for layer in range(5):
        close(mine.accumulated_bias(layer), other.accumulated_bias(layer))
    close(mine.accumulated_bias(2, mlp_input=True), other.accumulated_bias(2, mlp_input=True))
    for token in (" Paris", 5, torch.tensor([4, 5]), torch.tensor([[4, 5]])):
        close(mine.tokens_to_residual_directions(token), other.tokens_to_residual_directions(token))


# --- caches --------------------------------------------------------------------------------------


def test_the_stream_taken_apart(folded: tuple[Any, Any]) -> None:
    caches = [one.run_with_cache(PROMPT)[1] for one in folded]
    for method, kwargs in (
        ("accumulated_resid", {"incl_mid": True, "return_labels": True}),
        ("accumulated_resid", {"layer": 2, "apply_ln": True, "return_labels": True}),
        ("decompose_resid", {"layer": -1, "return_labels": True}),
        ("decompose_resid", {"layer": 2, "mode": "attn", "return_labels": True}),
        ("stack_head_results", {"layer": -1, "return_labels": True, "apply_ln": True}),
        ("stack_head_results", {"layer": 3, "incl_remainder": True, "return_labels": True}),
        ("get_full_resid_decomposition", {"expand_neurons": False, "return_labels": True}),
    ):
        (mine, labels), (other, wanted) = (getattr(one, method)(**kwargs) for one in caches)
        assert labels == wanted, method
        close(mine, other)
    stacks = [one.stack_head_results(-1, pos_slice=-1, apply_ln=True) for one in caches]
    close(*stacks)
    answers = [
        one.logit_attrs(one.stack_head_results(-1, pos_slice=-1), " Paris", " Rome", pos_slice=-1)
        for one in caches
    ]
    close(*answers)


def test_the_batch_axis_is_dropped_in_place(plain: tuple[Any, Any]) -> None:
    for one in plain:
        cache = one.run_with_cache(PROMPT)[1]
        cache.remove_batch_dim()
        assert cache["pattern", 0].ndim == 3
        assert not cache.has_batch_dim


# --- patching ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("resid_pre", "resid_mid", "attn_out", "mlp_out", "attn_head_out_by_pos"),
        *(
            "attn_head_out_all_pos",
            "attn_head_v_all_pos",
            "attn_head_pattern_all_pos",
            "block_every",
        ),
    ],
)
def test_patching_grids(name: str, plain: tuple[Any, Any]) -> None:
    results = []
    for library, one in zip((ours, theirs), plain, strict=True):
        clean, corrupted = one.to_tokens(PROMPT), one.to_tokens(OTHER)
        assert clean.shape == corrupted.shape
        _, cache = one.run_with_cache(clean)
        right, wrong = one.to_single_token(" Paris"), one.to_single_token(" Rome")

        def metric(logits: Tensor, right: int = right, wrong: int = wrong) -> Tensor:
            return logits[0, -1, right] - logits[0, -1, wrong]

        function = getattr(library.patching, f"get_act_patch_{name}")
        results.append(function(one, corrupted, cache, metric))
    close(results[0], results[1])


# --- the small functions -------------------------------------------------------------------------


def test_act_names() -> None:
    for given in (
        *(("k", 6, "a"), ("pre", 2), ("embed",), ("normalized", 27, "ln2"), ("k6",)),
        *(("scale4ln1",), ("pre5",), ("resid_pre", 3), ("pattern", 0), ("q_input", 1)),
        *(("attn_scores", 1), ("result", 2), ("mlp_out", 0), ("scale",), ("normalized",)),
    ):
        assert utils.get_act_name(*given) == their_utils.get_act_name(*given)


def test_tensor_functions() -> None:
    x = torch.randn(3, 4, 4)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    for call in (
        lambda u: u.to_numpy([1.0, 2.0]),
        lambda u: u.to_numpy(x),
        lambda u: u.get_corner(x, 2),
        lambda u: u.remove_batch_dim(x[:1]),
        lambda u: u.transpose(x),
        lambda u: u.is_square(x[0]),
        lambda u: u.is_lower_triangular(x[0].tril()),
        lambda u: u.is_lower_triangular(x[0]),
        lambda u: u.get_cumsum_along_dim(x, 1),
        lambda u: u.get_cumsum_along_dim(x, 1, reverse=True),
        lambda u: u.get_offset_position_ids(0, mask),
        lambda u: u.get_offset_position_ids(2, mask),
        lambda u: u.repeat_along_head_dimension(x, 2),
        lambda u: u.gelu_new(x),
        lambda u: u.gelu_fast(x),
        lambda u: u.solu(x),
        lambda u: u.lm_accuracy(x, torch.tensor([[1, 2, 3, 0]] * 3)),
        lambda u: u.lm_cross_entropy_loss(x, torch.tensor([[1, 2, 3, 0]] * 3)),
        lambda u: u.calc_fan_in_and_fan_out(torch.zeros(2, 3, 4))[0],
        lambda u: u.calc_fan_in_and_fan_out(torch.zeros(2, 3, 4))[1],
        lambda u: u.Slice((1, 3)).apply(x, dim=1),
        lambda u: u.Slice(2).apply(x, dim=-1),
        lambda u: u.Slice([0, 2]).apply(x, dim=2),
        lambda u: u.Slice(None).indices(4),
        lambda u: u.Slice((0, 3, 2)).indices(4),
    ):
        close(np.asarray(call(utils)), np.asarray(call(their_utils)), atol=1e-6)
    assert utils.filter_dict_by_prefix(
        {"a.b": 1, "c": 2}, "a"
    ) == their_utils.filter_dict_by_prefix({"a.b": 1, "c": 2}, "a")


def test_structures(capsys: pytest.CaptureFixture[str]) -> None:
    a = torch.tensor([[1, 2, 3], [2, 3, 1], [3, 1, 2]])
    for other in (a, a + 1, a.flip(0)):
        said = []
        for library in (utils, their_utils):
            library.check_structure(a, other)
            said.append("PASSED" in capsys.readouterr().out)
        assert said[0] == said[1]


@pytest.mark.parametrize(
    "init", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]
)
def test_initial_values(init: str) -> None:
    for shape in ((40, 30), (3, 40, 30), (50,)):
        drawn = []
        for library in (utils, their_utils):
            torch.manual_seed(0)
            drawn.append(getattr(library, f"init_{init}_")(torch.empty(shape)))
        close(*drawn, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_masks_from_tokens(side: str, prepend_bos: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder(), add_bos_token=True, padding_side=side)
    model = ours.HookedTransformer.from_pretrained("demo", tokenizer=tokenizer)
    ids = model.to_tokens([*BATCH, "a"], prepend_bos=prepend_bos)
    masks = [
        library.get_attention_mask(tokenizer, ids, prepend_bos) for library in (utils, their_utils)
    ]
    assert torch.equal(*masks)
    if prepend_bos:
        removed = [
            library.get_tokens_with_bos_removed(tokenizer, ids) for library in (utils, their_utils)
        ]
        assert torch.equal(*removed)


def test_alias_tables_mean_the_same_models() -> None:
    unknown = []
    for hub, names in their_loading.MODEL_ALIASES.items():
        for name in (hub, *names):
            try:
                found = ours.loading.get_official_model_name(name)
            except LensbridgeError:
                unknown.append(name)
                continue
            assert found.lower().split("/")[-1].removesuffix("-hf") in (
                hub.lower().split("/")[-1].removesuffix("-hf"),
                name.lower().split("/")[-1],
            )
    known = sum(len(names) + 1 for names in their_loading.MODEL_ALIASES.values())
    assert len(unknown) < known / 3  # TransformerLens's own formats, and remote code
    assert ours.loading.PYTHIA_CHECKPOINTS == their_loading.PYTHIA_CHECKPOINTS
    assert ours.loading.STANFORD_CRFM_CHECKPOINTS == their_loading.STANFORD_CRFM_CHECKPOINTS

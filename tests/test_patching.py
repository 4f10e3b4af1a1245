"""Activation patching against plain PyTorch hooks on the bare model, cell by cell, in float64."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from pictures import marks
from raw_patching import Bare
from tiny_models import Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge import patching as P
from lensbridge.errors import AbsentPointError, InputError, NotCachedError

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("gpt2", "llama", "neox", "neox_sequential")
Case = tuple[LensModel, Bare, Any]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = Shape(request.param, dtype=torch.float64)
    bare = Bare(shape, tokens(2, 4), tokens(2, 4, seed=1))
    model = lensbridge.load(build(shape))
    return model, bare, model.run_with_cache(bare.clean)[1]


@pytest.fixture(scope="module")
def gpt2() -> Case:
    shape = Shape("gpt2", dtype=torch.float64)
    bare = Bare(shape, tokens(4, 5), tokens(4, 5, seed=1))
    model = lensbridge.load(build(shape))
    return model, bare, model.run_with_cache(bare.clean)[1]


def per_example(logits: Tensor) -> Tensor:
    """A metric that reads every position and is not linear."""
    return (logits.softmax(-1)[:, :, 7] * torch.arange(1, logits.shape[1] + 1)).sum(1)


def metric(logits: Tensor) -> Tensor:
    return per_example(logits).mean()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def assign(*index: Any) -> Callable[[Tensor, Tensor], None]:
    def change(corrupted: Tensor, clean: Tensor) -> None:
        corrupted[index] = clean[index]

    return change


ALL = slice(None)
PUBLISHED = {
    "get_act_patch_resid_pre": ("resid_pre", lambda p: (ALL, p), "p"),
    "get_act_patch_resid_mid": ("resid_mid", lambda p: (ALL, p), "p"),
    "get_act_patch_attn_out": ("attn_out", lambda p: (ALL, p), "p"),
    "get_act_patch_mlp_out": ("mlp_out", lambda p: (ALL, p), "p"),
    "get_act_patch_attn_head_out_by_pos": ("z", lambda p, h: (ALL, p, h), "ph"),
    "get_act_patch_attn_head_q_by_pos": ("q", lambda p, h: (ALL, p, h), "ph"),
    "get_act_patch_attn_head_k_by_pos": ("k", lambda p, h: (ALL, p, h), "pg"),
    "get_act_patch_attn_head_v_by_pos": ("v", lambda p, h: (ALL, p, h), "pg"),
    "get_act_patch_attn_head_pattern_by_pos": ("pattern", lambda h, d: (ALL, h, d), "hp"),
    "get_act_patch_attn_head_pattern_dest_src_pos": (
        "pattern",
        lambda h, d, s: (ALL, h, d, s),
        "hpp",
    ),
    "get_act_patch_attn_head_out_all_pos": ("z", lambda h: (ALL, ALL, h), "h"),
    "get_act_patch_attn_head_q_all_pos": ("q", lambda h: (ALL, ALL, h), "h"),
    "get_act_patch_attn_head_k_all_pos": ("k", lambda h: (ALL, ALL, h), "g"),
    "get_act_patch_attn_head_v_all_pos": ("v", lambda h: (ALL, ALL, h), "g"),
    "get_act_patch_attn_head_pattern_all_pos": ("pattern", lambda h: (ALL, h), "h"),
}


@functools.cache
def by_hand(bare: Bare, name: str, measure: Callable[[Tensor], Tensor] = metric) -> Tensor:
    """What a published function should give."""
    what, index_of, letters = PUBLISHED[name]
    length = {"p": bare.corrupted.shape[1], "h": bare.shape.heads, "g": bare.shape.kv}
    sizes = [length[letter] for letter in letters]
    rows = [
        torch.stack(
            [
                measure(bare.patched(what, layer, assign(*index_of(*place))))
                for place in itertools.product(*map(range, sizes))
            ]
        )
        for layer in range(bare.shape.layers)
    ]
    return torch.stack(rows).reshape(bare.shape.layers, *sizes, *rows[0].shape[1:])


@pytest.mark.parametrize("exact", [True, False], ids=["one by one", "batched"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_functions_are_what_plain_hooks_give(name: str, exact: bool, case: Case) -> None:
    model, bare, cache = case
    if name.endswith("resid_mid") and bare.shape.family == "neox":
        with pytest.raises(AbsentPointError, match="parallel"):
            P.get_act_patch_resid_mid(model, bare.corrupted, cache, metric)
        return
    found = getattr(P, name)(model, bare.corrupted, cache, metric, exact=exact)
    assert type(found) is Tensor
    close(found, by_hand(bare, name))


def test_all_heads_at_once(case: Case) -> None:
    model, bare, cache = case
    found = P.get_act_patch_attn_head_all_pos_every(model, bare.corrupted, cache, metric)
    assert found.shape == (5, 2, bare.shape.heads)
    for i, kind in enumerate(("out", "q", "k", "v", "pattern")):
        wanted = by_hand(bare, f"get_act_patch_attn_head_{kind}_all_pos")
        close(found[i, :, : wanted.shape[1]], wanted)
        assert found[i, :, wanted.shape[1] :].isnan().all()  # heads beyond the key/value heads


def test_all_heads_by_position_at_once(gpt2: Case) -> None:
    model, bare, cache = gpt2
    found = P.get_act_patch_attn_head_by_pos_every(model, bare.corrupted, cache, metric)
    assert found.shape == (5, 2, 5, 4)
    close(found[1], by_hand(bare, "get_act_patch_attn_head_q_by_pos"))
    pattern = by_hand(bare, "get_act_patch_attn_head_pattern_by_pos")
    close(found[4], pattern.transpose(1, 2))


def test_streams_and_branches_at_once(case: Case) -> None:
    model, bare, cache = case
    found = P.get_act_patch_block_every(model, bare.corrupted, cache, metric)
    wanted = [by_hand(bare, f"get_act_patch_{one}") for one in ("resid_pre", "attn_out", "mlp_out")]
    close(found, torch.stack(wanted))


def test_every_gives_a_result_with_the_same_options(gpt2: Case) -> None:
    model, bare, cache = gpt2
    found = P.get_act_patch_attn_head_all_pos_every(
        model, bare.corrupted, cache, per_example, reduce="none", baseline=True
    )
    assert found.axis_names == ["patch_type", "layer", "head"]
    assert found.patch_type_names == ["out", "q", "k", "v", "pattern"]
    close(found.values[3], by_hand(bare, "get_act_patch_attn_head_v_all_pos", per_example))
    close(found.baseline, per_example(bare.runs[1].logits))
    frame = found.to_dataframe()
    one = frame.query("patch_type_name == 'v' and layer == 1 and head == 2 and example == 3")
    assert one.value.item() == float(found.values[3, 1, 2, 3])
    assert len(frame) == 5 * 2 * 4 * 4


# --- what comes back -------------------------------------------------------------------------


def test_examples_metrics_and_baselines(gpt2: Case) -> None:
    model, bare, cache = gpt2
    name, given = "get_act_patch_resid_pre", (model, bare.corrupted, cache)
    wanted = by_hand(bare, name, per_example)
    unpatched = per_example(bare.runs[1].logits)
    kept = P.get_act_patch_resid_pre(*given, per_example, reduce="none", baseline=True)
    close(kept.values, wanted)
    close(kept.baseline, unpatched)
    close(kept.mean(), wanted.mean(-1))
    close(kept.effect(), wanted - unpatched)
    clean = per_example(bare.runs[0].logits)
    close(kept.normalized(clean), (wanted - unpatched) / (clean - unpatched))
    averaged = P.get_act_patch_resid_pre(*given, per_example, reduce="mean")
    assert type(averaged) is Tensor
    close(averaged, wanted.mean(-1))
    both = {"first": per_example, "second": lambda logits: per_example(logits) ** 2}
    several = P.get_act_patch_resid_pre(*given, both, reduce="none", baseline=True)
    assert several.values.shape == (2, 2, 5, 4)
    close(several["second"].values, wanted**2)
    close(several["second"].baseline, unpatched**2)
    close(several.effect()[0], wanted - unpatched)


def test_the_clean_stream_at_every_position_restores_the_clean_run(gpt2: Case) -> None:
    model, bare, cache = gpt2

    def all_positions(corrupted: Tensor, index: list[int], clean: Tensor) -> Tensor:
        return clean

    found = P.generic_activation_patch(
        model, bare.corrupted, cache, metric, all_positions, "resid_pre", ["layer"], baseline=True
    )
    restored = found.normalized(metric(bare.runs[0].logits))
    torch.testing.assert_close(restored, torch.ones(2, dtype=torch.float64))


def test_cells_as_a_data_frame(gpt2: Case) -> None:
    model, bare, cache = gpt2
    cells = pd.DataFrame({"layer": [1, 0, 1], "pos": [4, 0, 2]})
    found, frame = P.generic_activation_patch(
        model,
        bare.corrupted,
        cache,
        metric,
        P.layer_pos_patch_setter,
        "attn_out",
        index_df=cells,
        return_index_df=True,
    )
    whole = by_hand(bare, "get_act_patch_attn_out")
    close(found, torch.stack([whole[1, 4], whole[0, 0], whole[1, 2]]))
    pd.testing.assert_frame_equal(frame, cells)
    again = P.get_act_patch_attn_out(model, bare.corrupted, cache, metric, index_df=cells)
    close(again, found)


def test_the_frame_of_a_grid(gpt2: Case) -> None:
    model, bare, cache = gpt2
    _, frame = P.get_act_patch_resid_pre(model, bare.corrupted, cache, metric, return_index_df=True)
    pd.testing.assert_frame_equal(frame, P.make_df_from_ranges([2, 5], ["layer", "pos"]))
    assert frame.values.tolist() == [[layer, pos] for layer in range(2) for pos in range(5)]


def test_a_result_is_a_tensor_to_torch_and_numpy(gpt2: Case) -> None:
    import numpy as np

    model, bare, cache = gpt2
    found = P.get_act_patch_resid_pre(model, bare.corrupted, cache, metric, baseline=True)
    values = found.values
    assert found.shape == (2, 5)
    assert found.max() == values.max()
    assert torch.equal(torch.stack([found, found]), torch.stack([values, values]))
    assert torch.equal(1 - found / 2, 1 - values / 2)
    assert torch.equal(found[1, 2:], values[1, 2:])
    assert np.array_equal(np.asarray(found), values.numpy())
    assert str(found) == "PatchingResult(layer 2, pos 5; metric)"
    assert len(marks(found.plot().svg())) == 10


def test_pictures_of_any_number_of_axes(gpt2: Case) -> None:
    model, bare, cache = gpt2
    metrics = {"up": metric, "down": lambda logits: -metric(logits)}
    given: Any = (model, bare.corrupted, cache, metrics)
    every = P.get_act_patch_attn_head_by_pos_every(*given)
    whole = every.plot(patch_type="q")
    assert whole.axes == ("metric, layer, pos", "head")
    assert (whole.rows[0], whole.rows[-1]) == ("up 0 0", "down 1 4")
    torch.testing.assert_close(
        torch.tensor(whole.values).double(), every.values[:, 1].reshape(-1, 4).double()
    )
    part = every.plot(metric="down", layer=1, patch_type="pattern", title="Patterns")
    assert (part.title, part.scale.unit, part.axes) == ("Patterns", "down", ("pos", "head"))
    torch.testing.assert_close(torch.tensor(part.values).double(), every.values[1, 4, 1].double())
    cells = [P.Cell(("z", 0), (slice(None), pos), 0.0) for pos in range(3)]
    row = model.sweep(bare.corrupted, cells, metric).plot()
    assert (row.axes, row.columns, len(row.values)) == (("", "cell"), ["0", "1", "2"], 1)
    for fixed, told in (
        ({"colour": 1}, "There is no axis 'colour'"),
        ({"layer": 7}, "There is no layer 7; there are 0, 1"),
        ({"patch_type": "z"}, "there are out, q, k, v, pattern"),
    ):
        with pytest.raises(InputError, match=told):
            every.plot(**fixed)
    single = P.get_act_patch_resid_pre(*given[:3], metric, baseline=True)
    with pytest.raises(InputError, match="A picture has 1 to"):
        single.plot(layer=0, pos=0)


def test_a_cache_without_its_batch_axis_and_a_clean_run_of_one(gpt2: Case) -> None:
    model, bare, _ = gpt2
    _, bare_cache = model.run_with_cache(bare.clean[:1], remove_batch_dim=True)
    _, one = model.run_with_cache(bare.clean[:1])
    found = [
        P.get_act_patch_attn_head_out_all_pos(model, bare.corrupted, cache, metric)
        for cache in (bare_cache, one, dict(one))
    ]
    alone = Bare(bare.shape, bare.clean[:1].expand(4, -1), bare.corrupted)
    for one_of_them in found:
        close(one_of_them, by_hand(alone, "get_act_patch_attn_head_out_all_pos"))


def test_masked_input_is_run_with_its_mask(gpt2: Case) -> None:
    model, bare, _ = gpt2
    mask = torch.ones_like(bare.corrupted)
    mask[1, :2] = 0
    _, cache = model.run_with_cache({"input_ids": bare.clean, "attention_mask": mask})
    given = {"input_ids": bare.corrupted, "attention_mask": mask}
    one, many = (
        P.get_act_patch_mlp_out(model, given, cache, metric, exact=exact) for exact in (True, False)
    )
    close(one, many)
    wanted = model.run_with_hooks(
        bare.corrupted,
        [("blocks.1.hook_mlp_out", lambda x, hook: x.index_copy(1, *clean_at(cache, 3)))],
        attention_mask=mask,
    )
    close(one[1, 3], metric(wanted))


def clean_at(cache: Any, pos: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([pos]), cache["mlp_out", 1][:, pos : pos + 1]


# --- statistics ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(gpt2: Case) -> P.PatchingResult:
    model, bare, cache = gpt2
    return P.get_act_patch_resid_pre(
        model, bare.corrupted, cache, per_example, reduce="none", baseline=True
    )


def test_standard_errors(kept: P.PatchingResult) -> None:
    close(kept.stderr(), torch.from_numpy(kept.values.numpy().std(-1, ddof=1) / 2))


def test_permutation_pvalues_count_every_choice_of_signs(kept: P.PatchingResult) -> None:
    effect = kept.effect().numpy()
    signs = list(itertools.product((1, -1), repeat=4))
    for alternative, measure in (
        ("two-sided", abs),
        ("greater", float),
        ("less", lambda x: -float(x)),
    ):
        found = kept.permutation_pvalue(alternative=alternative)  # type: ignore[arg-type]
        for layer, pos in itertools.product(range(2), range(5)):
            one = effect[layer, pos]
            observed = measure(one.mean())
            as_extreme = [measure((one * s).mean()) >= observed - 1e-12 for s in signs]
            assert float(found[layer, pos]) == pytest.approx(sum(as_extreme) / 16)


def test_many_examples_draw_signs_and_never_give_zero() -> None:
    values = torch.randn(3, 40, dtype=torch.float64) * 0.1 + torch.tensor([[0.0], [0.02], [5.0]])
    grid = P.Grid.over(("layer",), [range(3)])
    result = P.PatchingResult(values, grid, ["metric"], False, torch.zeros(40).double())
    found = result.permutation_pvalue(4000, seed=1)
    assert torch.equal(found, result.permutation_pvalue(4000, seed=1))
    assert float(found[2]) == 1 / 4001
    # the same by the normal approximation of the sign-flip distribution
    effect = values.mean(-1) / (values.pow(2).sum(-1).sqrt() / 40)
    normal = 2 * (1 - torch.distributions.Normal(0, 1).cdf(effect.abs()))
    torch.testing.assert_close(found[:2], normal[:2], atol=0.03, rtol=0)


def test_bootstrap_intervals(kept: P.PatchingResult) -> None:
    low, high = kept.bootstrap_ci(4000, seed=0)
    assert torch.equal(low, kept.bootstrap_ci(4000, seed=0)[0])
    # every one of the 4^4 resamples, instead of random ones
    every = torch.tensor(list(itertools.product(range(4), repeat=4)))
    means = kept.values[..., every].mean(-1)
    spread = kept.values.std(-1)
    assert ((low - means.quantile(0.025, dim=-1)).abs() <= 0.1 * spread).all()
    assert ((high - means.quantile(0.975, dim=-1)).abs() <= 0.1 * spread).all()
    unpatched = P.PatchingResult(kept.effect(), kept.grid, ["metric"], False)
    close(kept.bootstrap_ci(50, of_effect=True)[0], unpatched.bootstrap_ci(50)[0])
    narrow = kept.bootstrap_ci(500, confidence=0.5)
    assert (narrow[0] >= kept.bootstrap_ci(500)[0]).all()
    medians = kept.bootstrap_ci(500, statistic="median")
    assert (medians[0] >= kept.values.amin(-1)).all()


def test_statistics_say_what_they_need(gpt2: Case) -> None:
    model, bare, cache = gpt2
    bare_result = P.get_act_patch_resid_pre(model, bare.corrupted, cache, {"m": metric})
    for ask, told in (
        (bare_result.stderr, "reduce='none'"),
        (bare_result.bootstrap_ci, "reduce='none'"),
        (bare_result.permutation_pvalue, "reduce='none'"),
        (bare_result.effect, "baseline=True"),
        (lambda: bare_result.normalized(1.0), "baseline=True"),
        (lambda: bare_result["other"], "no metric|No metric"),
    ):
        with pytest.raises(InputError, match=told):
            ask()


# --- what is refused, before any cell runs ---------------------------------------------------


@pytest.fixture
def cells_run(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The cells that were run, so that a test can say: none."""
    from lensbridge.sweeps.edit import SetterEdit

    ran: list[Any] = []
    apply = SetterEdit.apply

    def noting(self: SetterEdit, activation: Tensor) -> Tensor:
        ran.append(self)
        return apply(self, activation)

    monkeypatch.setattr(SetterEdit, "apply", noting)
    return ran


def refused(told: str, error: type[Exception] = InputError) -> Any:
    return pytest.raises(error, match=told)


def test_bad_metrics(gpt2: Case, cells_run: list[Any]) -> None:
    model, bare, cache = gpt2
    given = (model, bare.corrupted, cache)
    patch = P.get_act_patch_resid_pre
    with refused(r"gives shape \(4,\).*reduce='mean'"):
        patch(*given, per_example)
    with refused(r"gives shape \(\).*each example, \(4,\)"):
        patch(*given, metric, reduce="none")
    with refused("'x' of the unpatched run is NaN"):
        patch(*given, {"x": lambda logits: logits.mean() * torch.nan})
    with refused("empty"):
        patch(*given, {})
    with refused("function of logits"):
        patch(*given, 3)
    with refused("reduce is"):
        patch(*given, metric, reduce="sum")
    assert not cells_run


def test_inputs_of_other_lengths_and_batches(gpt2: Case, cells_run: list[Any]) -> None:
    model, bare, cache = gpt2
    longer = torch.cat([bare.clean[:, :2], torch.full((4, 3), 9), bare.clean[:, 2:]], 1)
    with refused(
        r"5 positions in the clean cache and 8 .*which positions correspond.*"
        r"the first 2 \(0 to 1 in both\) and the last 3 \(-3 to -1\)"
    ):
        P.get_act_patch_resid_pre(model, longer, cache, metric)
    with refused("4 examples and the corrupted input 3"):
        P.get_act_patch_resid_pre(model, bare.corrupted[:3], cache, metric)
    assert not cells_run

    def last(corrupted: Tensor, index: list[int], clean: Tensor) -> Tensor:
        corrupted[:, -1] = clean[:, -1]
        return corrupted

    found = P.generic_activation_patch(model, longer, cache, metric, last, "resid_pre", ["layer"])
    assert found.shape == (2,)  # a setter of one's own says which position goes where


def test_bad_points_indices_and_modes(gpt2: Case, cells_run: list[Any]) -> None:
    model, bare, cache = gpt2
    _, small = model.run_with_cache(bare.clean, names_filter="resid_pre")
    given = (model, bare.corrupted)
    with refused("clean cache lacks blocks.0.attn.hook_z", NotCachedError):
        P.get_act_patch_attn_head_out_all_pos(*given, small, metric)
    with refused("no axis for 'head'"):
        P.get_act_patch_resid_pre(*given, cache, metric, index_axis_names=("layer", "head"))
    with refused("no index axis 'place'"):
        P.get_act_patch_resid_pre(*given, cache, metric, index_axis_names=("layer", "place"))
    with refused("first axis of an index is 'layer'"):
        P.get_act_patch_resid_pre(*given, cache, metric, index_axis_names=("pos",))
    with refused("pos 7.*has 5"):
        rows = pd.DataFrame({"layer": [0], "pos": [7]})
        P.get_act_patch_resid_pre(*given, cache, metric, index_df=rows)
    with refused("2 entries"):
        P.get_act_patch_attn_head_q_by_pos(
            *given, cache, metric, index_axis_names=("layer", "head")
        )
    with refused("index_axis_names or index_df"):
        P.generic_activation_patch(*given, cache, metric, P.layer_pos_patch_setter, "resid_pre")
    with refused("return_index_df"):
        P.get_act_patch_resid_pre(*given, cache, metric, return_index_df=True, baseline=True)
    model.train()
    with refused("training mode"):
        P.get_act_patch_resid_pre(*given, cache, metric)
    model.eval()
    assert not cells_run


# --- interrupts ------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False], ids=["one by one", "batched"])
def test_an_interrupt_leaves_what_ran(gpt2: Case, exact: bool) -> None:
    model, bare, cache = gpt2
    calls = 0

    def impatient(logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise KeyboardInterrupt
        return metric(logits)

    found = P.get_act_patch_resid_pre(model, bare.corrupted, cache, impatient, exact=exact)
    assert isinstance(found, P.PatchingResult)
    assert found.partial
    assert "interrupted" in repr(found)
    wanted = by_hand(bare, "get_act_patch_resid_pre")
    ran = ~found.values.isnan()
    assert 1 <= int(ran.sum()) < 10
    close(found.values[ran], wanted[ran])
    assert model.engine.is_idle
    calls = 4
    every = P.get_act_patch_block_every(model, bare.corrupted, cache, impatient, exact=exact)
    assert every.partial
    assert every[1:].isnan().all()  # what comes after is not begun

"""Attribution with several metrics, dropped gradients and examples kept; what is refused."""

from functools import partial
from typing import Any

import pytest
import torch
from contrast import CLEAN, CORRUPT, metric, tiny, total
from described import tiny as of_name
from tiny_models import Layer, Shape, build
from torch import Tensor, nn

import lensbridge
from lensbridge.causal import (
    AttributionConfig,
    Circuit,
    FaithfulnessConfig,
    attribution_patch,
    cache_activation_and_gradient,
    capture_writer_outputs,
    enumerate_edges,
    enumerate_nodes,
    faithfulness,
    prune_circuit,
    screen,
)
from lensbridge.errors import InputError
from lensbridge.inputs.random import inputs_for
from lensbridge.viz import Heatmap, Panels

pytestmark = pytest.mark.usefixtures("one_thread")


def middle(logits: Tensor) -> Tensor:
    """Log-probabilities at another position, for each example."""
    return logits[:, 4].log_softmax(-1)[:, 3]


SEVERAL = {"difference": metric, "middle": middle}


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal but for norms that compute in float32."""
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


# --- by hand -------------------------------------------------------------------------------------


def test_activations_and_gradients_are_enough_for_an_attribution_by_hand() -> None:
    hf = build(Shape("llama", dtype=torch.float64))
    model = lensbridge.load(hf)
    here = cache_activation_and_gradient(model, CORRUPT, total)
    there = cache_activation_and_gradient(model, CLEAN, total, compute_gradient=False)
    assert set(there.gradients.values()) == {None}
    found = attribution_patch(model, CLEAN, CORRUPT, total)
    close(here.metric, found.baseline)
    close(there.metric, found.target)
    for i in range(2):
        for point, unit in (
            (f"blocks.{i}.attn.hook_z", "head"),
            (f"blocks.{i}.hook_mlp_out", "mlp"),
        ):
            grad = here.gradients[point]
            assert grad is not None
            product = (there.activations[point] - here.activations[point]) * grad
            close(found[unit][i], product.sum((0, 1, -1)))
    written = capture_writer_outputs(model, CLEAN)
    o = Layer(hf, "llama", 1).o.weight.unflatten(1, (4, -1))
    z = there.activations["blocks.1.attn.hook_z"]
    close(written["blocks.1.attn.hook_result"], torch.einsum("bphd,mhd->bphm", z, o).detach())
    assert set(capture_writer_outputs(model, CLEAN, "hook_embed")) == {"hook_embed"}
    only = cache_activation_and_gradient(model, CORRUPT, total, ["resid_pre"])
    assert set(only.gradients) == {"blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"}


# --- several metrics -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "edge", "positions": True},
        {"method": "ig_inputs", "steps": 3, "positions": True},
        {"method": "ig_activations", "steps": 2, "granularity": "edge"},
        {"units": ["q", "k"], "attention_fix": True},
        {"grad_drop": True, "units": "head"},
    ],
)
def test_several_metrics_score_as_each_alone(options: dict[str, Any]) -> None:
    model = tiny("LlamaForCausalLM")
    runs: list[int] = []
    handle = model.hf_model.register_forward_hook(lambda *call: runs.append(1))
    together = attribution_patch(model, CLEAN, CORRUPT, SEVERAL, reduce="none", **options)
    shared = len(runs)
    assert list(together) == list(SEVERAL)
    for name, function in SEVERAL.items():
        runs.clear()
        alone = attribution_patch(model, CLEAN, CORRUPT, function, reduce="none", **options)
        assert len(runs) == shared  # the passes forward are those of one metric
        assert together[name].axis_names == alone.axis_names
        for unit, scores in alone.scores.items():
            close(together[name][unit], scores)
        close(together[name].baseline, alone.baseline)
        close(together[name].target, alone.target)
    handle.remove()


def test_a_circuit_is_measured_by_several_metrics_at_once() -> None:
    model = tiny("LlamaForCausalLM")
    together = faithfulness(model, CLEAN, CORRUPT, SEVERAL, ["a0.h1", "m1"], reduce="none")
    for name, function in SEVERAL.items():
        alone = faithfulness(model, CLEAN, CORRUPT, function, ["a0.h1", "m1"], reduce="none")
        for one in ("full", "kept", "removed", "empty", "corrupt"):
            close(vars(together[name])[one], vars(alone)[one])
    for search in (screen, partial(prune_circuit, threshold=0.1)):
        with pytest.raises(InputError, match="difference, middle"):
            search(model, CLEAN, CORRUPT, SEVERAL)  # type: ignore[operator]


# --- gradients that pass by a layer --------------------------------------------------------------


def gradients_past(hf: nn.Module, shape: Shape, past: int) -> tuple[dict[str, Tensor], ...]:
    """Values and gradients in the bare model where what one layer adds is a constant."""
    kept: dict[str, Tensor] = {}
    handles = []
    for i in range(shape.layers):
        layer = Layer(hf, shape.family, i)

        def before(_: nn.Module, args: Any, i: int = i) -> Any:
            kept[f"a{i}"] = args[0].clone()
            return (kept[f"a{i}"], *args[1:])

        def after(_: nn.Module, args: Any, out: Tensor, i: int = i) -> Tensor:
            kept[f"m{i}"] = out.clone()
            return kept[f"m{i}"].detach() if i == past else kept[f"m{i}"]

        handles += [
            layer.o.register_forward_pre_hook(before),
            layer.mlp.register_forward_hook(after),
        ]
        if i == past:
            handles.append(layer.o.register_forward_hook(lambda _, args, out: out.detach()))
    embedded = hf.get_input_embeddings()  # type: ignore[operator]
    handles.append(
        embedded.register_forward_hook(lambda _, args, out: kept.setdefault("input", out.clone()))
    )
    try:
        value = total(hf(CORRUPT).logits)
    finally:
        for handle in handles:
            handle.remove()
    found = torch.autograd.grad(value, list(kept.values()), allow_unused=True)
    grads = {
        k: torch.zeros_like(v) if g is None else g
        for (k, v), g in zip(kept.items(), found, strict=True)
    }
    return {k: v.detach() for k, v in kept.items()}, grads


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_dropped_gradients_are_averaged_in_magnitude(family: str) -> None:
    shape = Shape(family, layers=3, dtype=torch.float64)
    hf = build(shape)
    model = lensbridge.load(hf)
    terms: dict[str, list[Tensor]] = {}
    for past in range(shape.layers):
        base, grads = gradients_past(hf, shape, past)
        _, cache = model.run_with_cache(CLEAN)
        for name, grad in grads.items():
            if name.endswith(str(past)):
                continue  # a node's own layer
            point = "hook_embed" if name == "input" else f"blocks.{name[1]}."
            point += {"a": "attn.hook_z", "m": "hook_mlp_out"}.get(name[0], "")
            clean = cache[point].flatten(2) if name[0] == "a" else cache[point]
            product = (clean - base[name]) * grad
            parts = product.unflatten(-1, (shape.heads, -1)) if name[0] == "a" else product
            terms.setdefault(name, []).append(parts.sum(-1))
    wanted = {name: torch.stack(rows).transpose(1, -1).sum(2) for name, rows in terms.items()}

    of_batch = attribution_patch(model, CLEAN, CORRUPT, total, grad_drop=True)
    kept = attribution_patch(model, CLEAN, CORRUPT, metric, reduce="none", grad_drop=True)
    mean = attribution_patch(model, CLEAN, CORRUPT, metric, reduce="mean", grad_drop=True)
    for name, rows in terms.items():
        summed = torch.stack(rows).sum(2)  # positions
        layer = () if name == "input" else (int(name[1]),)
        unit = {"a": "head", "m": "mlp", "i": "input"}[name[0]]
        close(of_batch[unit][layer], summed.sum(1).abs().mean(0))
        each = summed.abs().mean(0).movedim(0, -1)
        close(kept[unit][layer], each)
        close(mean[unit][layer], each.mean(-1))
    assert wanted
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


def test_dropped_gradients_need_described_layers() -> None:
    with pytest.raises(InputError, match="not described"):
        attribution_patch(of_name("xmod"), CLEAN, CORRUPT, total, units="input", grad_drop=True)
    seeing = of_name("qwen2_vl")  # whose tower has no part in this
    given = inputs_for(seeing.hf_model)
    ids = given["input_ids"].clone()
    ids[:, -2] = (ids[:, -2] + 1) % 40
    found = attribution_patch(seeing, given, {**given, "input_ids": ids}, total, grad_drop=True)
    assert float(found["head"].max()) > 0
    one = lensbridge.load(build(Shape("gpt2", layers=1)))
    with pytest.raises(InputError, match="has one"):
        attribution_patch(one, CLEAN, CORRUPT, total, grad_drop=True)


# --- examples, and the largest -------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_examples_that_are_kept_score_and_screen_as_each_alone(granularity: Any) -> None:
    model = tiny("LlamaForCausalLM")
    both = attribution_patch(
        model, CLEAN, CORRUPT, metric, reduce="none", granularity=granularity, positions=True
    )
    screened = screen(model, CLEAN, CORRUPT, metric, k=6, reduce="none", granularity=granularity)
    assert screened.exact.shape == screened.estimated.shape == (6, 2)
    mean = screen(model, CLEAN, CORRUPT, metric, k=6, reduce="mean", granularity=granularity)
    assert mean.parts == screened.parts
    close(mean.exact, screened.exact.mean(-1))
    assert mean.rank_agreement == screened.rank_agreement
    assert [label for label, _ in mean.verified] == [label for label, _ in screened.verified]
    frame = screened.to_dataframe()
    assert list(frame.columns) == ["part", "example", "estimated", "exact"]
    assert frame.exact.tolist() == pytest.approx(screened.exact.flatten().tolist())
    for i in range(2):
        pair = CLEAN[i : i + 1], CORRUPT[i : i + 1]
        alone = attribution_patch(model, *pair, total, granularity=granularity, positions=True)
        of_one = both.example(i)
        assert of_one.axis_names == alone.axis_names
        for unit, scores in alone.scores.items():
            close(of_one[unit], scores)
        for part, score in alone.entries[::17]:
            assert float(both.score(part)[i]) == pytest.approx(score, rel=1e-4, abs=1e-5)
        again = screen(model, *pair, total, k=100, granularity=granularity)
        for part, exact in zip(screened.parts, screened.exact[:, i], strict=True):
            assert float(exact) == pytest.approx(float(again.exact[again.parts.index(part)]))
    with pytest.raises(InputError, match="2 examples"):
        both.example(2)
    with pytest.raises(InputError, match="pass reduce='none'"):
        mean.attribution.example(0)


def test_the_largest_are_a_circuit_and_a_picture() -> None:
    model = tiny("LlamaForCausalLM")
    found = attribution_patch(model, CLEAN, CORRUPT, total, positions=True)
    assert found.circuit(5) == Circuit.of(found.top_nodes(5))
    assert found.score("a1.h2@3") == found["head"][1, 2, 3]
    picture, every = found.plot("head"), found.plot()
    assert isinstance(picture, Heatmap)
    assert isinstance(every, Panels)
    assert [one.title for one in every.pictures] == ["input", "head", "mlp"]
    cells = picture.values
    assert len(cells) == 2 * 4
    assert cells[1 * 4 + 2][3] == pytest.approx(float(found["head"][1, 2, 3]))
    edges = attribution_patch(model, CLEAN, CORRUPT, total, granularity="edge")
    assert edges.circuit(9, by="high") == Circuit.of(edges.top_edges(9, by="high"))
    assert (
        float(edges.score("a0.h1->a1.h1<k>"))
        == edges.edge_scores[next(iter(Circuit.of("a0.h1->a1.h1<k>").edges))]
    )
    assert "a1.h1&lt;k&gt;" in edges.plot(title="Edges").svg()
    for wrong, words in [
        (lambda: found.plot("z"), "input, head, mlp"),
        (lambda: found.score("a7.h0"), "a7.h0 was not scored"),
        (lambda: found.top_edges(), "granularity='edge'"),
        (lambda: found.top(-1), "not -1"),
    ]:
        with pytest.raises(InputError, match=words):
            wrong()


def test_the_input_is_not_counted_among_the_parts() -> None:
    model = tiny("LlamaForCausalLM")
    whole = faithfulness(model, CLEAN, CORRUPT, total, enumerate_nodes(model))
    assert "10 of 10 nodes" in repr(whole)


def test_magnitudes_agree_with_magnitudes() -> None:
    model = tiny("LlamaForCausalLM")
    found = screen(model, CLEAN, CORRUPT, total, k=10, grad_drop=True)
    assert not found.attribution.signed
    ranks = (found.exact.abs().argsort().argsort(), found.estimated.argsort().argsort())
    wanted = torch.corrcoef(torch.stack(ranks).double())[0, 1]
    assert found.rank_agreement == pytest.approx(float(wanted))


@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_a_screening_that_is_interrupted_gives_what_it_has(granularity: Any) -> None:
    model = tiny("LlamaForCausalLM")
    whole = screen(model, CLEAN, CORRUPT, total, k=8, granularity=granularity)
    left = [9]

    def stopping(logits: Tensor) -> Tensor:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return total(logits)

    found = screen(model, CLEAN, CORRUPT, stopping, k=8, granularity=granularity)
    assert (found.partial, whole.partial) == (True, False)
    measured = ~found.exact.isnan()
    assert 0 < int(measured.sum()) < 8
    close(found.exact[measured], whole.exact[measured])
    assert len(found.verified) == int(measured.sum())
    assert "interrupted" in repr(found)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf_model.modules())


def test_circuits_are_sets_that_show_themselves() -> None:
    one, other = Circuit.of(["m0", "a0.h1", "a1.h1"]), Circuit.of(["a0.h1", "m1"])
    assert one & other == Circuit.of("a0.h1")
    assert Circuit.of(["a0.h1", "encoder.a1.h1", "m0"]).heads == {(0, 1)}
    assert repr(one) == "Circuit(3 nodes: a0.h1, a1.h1, m0)"
    assert repr(Circuit.of([f"m{i}" for i in range(20)])).endswith("m6, m7, ...)")


# --- hooks of the user's -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "head"), [("attn.hook_z", True), ("attn.hook_pattern", True), ("hook_mlp_out", False)]
)
def test_hooks_that_edit_what_branches_compute_act_in_every_run(point: str, head: bool) -> None:
    model = tiny("LlamaForCausalLM")
    full = f"blocks.0.{point}"

    def halve(value: Tensor, hook: Any) -> Tensor:
        return value / 2

    model.hf_model.requires_grad_(False)
    with model.hooks([(full, halve)]):
        nodes = attribution_patch(model, CLEAN, CORRUPT, total)
        edges = attribution_patch(model, CLEAN, CORRUPT, total, granularity="edge")
        where = "blocks.0.attn.hook_z" if head else full
        _, grads = model.gradients(CORRUPT, [where], total)
        values = [model.run_with_cache(ids, [where])[1][where] for ids in (CLEAN, CORRUPT)]
    model.hf_model.requires_grad_(True)
    product = ((values[0] - values[1]) * grads[where]).sum((0, 1, -1))
    close(nodes["head" if head else "mlp"][0], product)
    for node, score in edges.node_scores.items():
        if node.kind != "input":
            assert score == pytest.approx(nodes.node_scores[node], rel=1e-4, abs=1e-5)


def test_hooks_between_branches_and_stream_are_refused_for_edges() -> None:
    model = tiny("LlamaForCausalLM")
    for point in ("hook_attn_out", "hook_resid_pre", "attn.hook_result", "hook_q_input"):
        hook = (f"blocks.1.{point}", lambda value, hook: value * 0)
        with pytest.raises(InputError, match="may change the stream"), model.hooks([hook]):
            attribution_patch(model, CLEAN, CORRUPT, total, granularity="edge")
        with pytest.raises(InputError, match="may change the stream"), model.hooks([hook]):
            faithfulness(model, CLEAN, CORRUPT, total, ["a0.h1->m1"])


# --- what is refused -----------------------------------------------------------------------------


def test_words_that_do_not_go_together() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    pair: tuple[Any, Any] = (CLEAN, CORRUPT)
    edge: Any = {"granularity": "edge"}
    for options, words in [
        ({"units": []}, "units is empty"),
        ({"units": ["head"], **edge}, "units is for nodes"),
        ({"grad_drop": True, **edge}, "grad_drop is for nodes"),
        ({"method": "ig_inputs", "steps": 2.5}, "steps=2.5"),
        ({"config": "edge"}, "options by name"),
        ({"config": AttributionConfig("edge"), "method": "ig_inputs", "steps": 2}, "not both"),
    ]:
        with pytest.raises(InputError, match=words):
            attribution_patch(model, *pair, total, **options)
    for k in (2.5, None, 0):
        with pytest.raises(InputError, match="1 or more, not"):
            screen(model, *pair, total, k=k)  # type: ignore[arg-type]
    for options, words in [
        ({"threshold": None}, "0 or more"),
        ({"threshold": float("nan")}, "0 or more"),
        ({"threshold": 0.1, "order": ["a9.h1"]}, "order has a9.h1"),
        ({"threshold": 0.1, "candidates": ["m0"], "order": ["m1"]}, "among the 1 parts"),
    ]:
        with pytest.raises(InputError, match=words):
            prune_circuit(model, *pair, total, **options)
    for circuit, words in [(None, "result.circuit"), (["a0.h1<q>"], "a0.h0 to m1")]:
        with pytest.raises(InputError, match=words):
            faithfulness(model, *pair, total, circuit)  # type: ignore[arg-type]
    config: Any = FaithfulnessConfig("mean")
    with pytest.raises(InputError, match="not both"):
        faithfulness(model, *pair, total, [], config, ablation="zero")


def test_some_of_a_search_is_tried_in_the_order_that_is_asked_for() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    found = prune_circuit(model, CLEAN, CORRUPT, total, 0.0, order=["m0", "a1.h2", "m0"])
    assert [trial.part for trial in found.trials] == ["m0", "a1.h2"]
    assert "10 of 10 nodes" in repr(found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("xmod", "not described in layer 0"),
        ("rwkv", "changes the stream before it"),
        ("gemma4_text", "hook_per_layer_out"),
        ("zamba", "a shared block"),
        ("gemma3n_text", "this model has several"),
        ("t5", "two, joined by cross-attention"),
    ],
)
def test_models_without_edges_say_why(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        enumerate_edges(of_name(name))


def test_metrics_that_gradients_cannot_reach() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(InputError, match="does not depend on the logits"):
        attribution_patch(model, CLEAN, CORRUPT, lambda logits: torch.zeros((), requires_grad=True))
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        attribution_patch(model, CLEAN, CORRUPT, total)
    with torch.no_grad():
        here = attribution_patch(model, CLEAN, CORRUPT, total)
    close(here["head"], attribution_patch(model, CLEAN, CORRUPT, total)["head"])


def test_models_that_update_a_state_in_place() -> None:
    rwkv = of_name("rwkv")
    found = attribution_patch(rwkv, CLEAN, CORRUPT, total, units="stream")
    point = "blocks.1.hook_resid_pre"
    _, grads = rwkv.gradients(CORRUPT, [point], total)
    values = [rwkv.run_with_cache(ids, [point])[1][point] for ids in (CLEAN, CORRUPT)]
    close(found["stream"][1], ((values[0] - values[1]) * grads[point]).sum())
    given = [{"input_ids": ids, "use_cache": True} for ids in (CLEAN, CORRUPT)]
    with pytest.raises(InputError, match="without past_key_values or use_cache"):
        attribution_patch(rwkv, *given, total, units="stream")


def test_padding_that_does_not_lie_over_the_other_inputs() -> None:
    model = lensbridge.load(build(Shape("llama")))
    mask = torch.ones_like(CLEAN)
    short = mask.clone()
    short[1, :2] = 0
    one, other = ({"input_ids": CLEAN, "attention_mask": m} for m in (mask, short))
    for call in (
        partial(attribution_patch, metric=total),
        partial(faithfulness, metric=total, circuit=[]),
        partial(prune_circuit, metric=total, threshold=0.1),
        partial(screen, metric=total),
    ):
        with pytest.raises(InputError, match="Example 1 has 7 positions in the clean input and 5"):
            call(model, one, other)  # type: ignore[operator]
    for mode in ("mean", "resample"):
        with pytest.raises(InputError, match="different padding"):
            faithfulness(
                model,
                CLEAN,
                CORRUPT,
                total,
                [],
                ablation=mode,
                reference=other,  # type: ignore[arg-type]
            )
    with pytest.raises(InputError, match="3 positions and the input 7"):
        faithfulness(model, CLEAN, CORRUPT, total, [], ablation="mean", reference=CLEAN[:, :3])
    t5 = tiny("T5ForConditionalGeneration")
    inputs = [
        {"input_ids": CLEAN, "decoder_input_ids": torch.zeros(2, n, dtype=torch.long)}
        for n in (2, 3)
    ]
    with pytest.raises(InputError, match="decoder_input_ids has shape"):
        attribution_patch(t5, *inputs, total)


def test_embeddings_have_no_token_embedding() -> None:
    model = tiny("LlamaForCausalLM")
    embed = model.hf_model.get_input_embeddings()
    with torch.no_grad():
        given = [embed(ids) for ids in (CLEAN, CORRUPT)]
    found = attribution_patch(model, *given, total)
    close(found["head"], attribution_patch(model, CLEAN, CORRUPT, total)["head"])
    assert "input" not in found.scores
    config: Any = AttributionConfig("edge", ig_steps=3)
    for options in ({"units": "input"}, {"method": "ig_inputs", "steps": 2}, {"config": config}):
        with pytest.raises(InputError, match="need token embeddings"):
            attribution_patch(model, *given, total, **options)

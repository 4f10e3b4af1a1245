"""Circuits: ablations against raw hooks on the bare model, and a search that finds known heads."""

import math
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contrast import CLEAN, CORRUPT, metric, tiny, total
from tiny_models import Layer, Shape, build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import lensbridge
from lensbridge.causal import (
    Circuit,
    FaithfulnessConfig,
    Graph,
    Node,
    attribution_patch,
    enumerate_nodes,
    faithfulness,
    prune_circuit,
    screen,
)
from lensbridge.demo import FOLDER
from lensbridge.errors import InputError
from lensbridge.patching import path_patch

pytestmark = pytest.mark.usefixtures("one_thread")

REFERENCE = torch.tensor([[8, 3, 4, 30, 6, 3, 12], [1, 7, 3, 3, 25, 8, 6], [4, 4, 4, 9, 9, 9, 2]])


# --- circuits ------------------------------------------------------------------------------------


def test_circuits_are_sets_with_text(tmp_path: Path) -> None:
    circuit = Circuit.of(["m1", "a0.h1", Node("neuron", 2, 7), ("a1.h0", 0.5), "a0.h1"])
    assert circuit.labels == ["a0.h1", "a1.h0", "m1", "m2.n7"]
    assert "a1.h0" in circuit
    assert "a1.h1" not in circuit
    assert circuit.heads == {(0, 1), (1, 0)}
    assert Circuit.from_json(circuit.to_json()) == circuit
    circuit.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == circuit
    wires = Circuit.of([("a0.h1", "a1.h0<q>"), "input->logits", (Node("mlp", 0), "m1", 0.3)])
    assert wires.labels == ["a0.h1->a1.h0<q>", "input->logits", "m0->m1"]
    assert Circuit.from_json(wires.to_json()) == wires
    assert len(wires - Circuit.of(["m0->m1"])) == 2
    for wrong in (["m1", "m0->m1"], ["x3"], ["m0->m1->m2"]):
        with pytest.raises(InputError):
            Circuit.of(wrong)
    with pytest.raises(InputError, match="JSON of a circuit"):
        Circuit.from_json('{"kind": "nodes"}')


# --- nodes against raw hooks ---------------------------------------------------------------------


def ends(hf: nn.Module, shape: Shape) -> dict[str, tuple[nn.Module, str]]:
    found: dict[str, tuple[nn.Module, str]] = {}
    for i in range(shape.layers):
        layer = Layer(hf, shape.family, i)
        found |= {f"a{i}": (layer.o, "input"), f"m{i}": (layer.mlp, "output")}
    return found


def values(hf: nn.Module, shape: Shape, ids: Tensor) -> dict[str, Tensor]:
    """What goes into output projections, and what MLPs give, in a bare run."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, (module, side) in ends(hf, shape).items():
        if side == "input":

            def before(_: nn.Module, args: Any, name: str = name) -> None:
                found[name] = args[0].clone()

            handles.append(module.register_forward_pre_hook(before))
        else:

            def after(_: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
                found[name] = out.clone()

            handles.append(module.register_forward_hook(after))
    with torch.no_grad():
        hf(ids)
    for handle in handles:
        handle.remove()
    return found


def ablated(
    hf: nn.Module, shape: Shape, ids: Tensor, keep: Collection[str], given: dict[str, Tensor]
) -> Tensor:
    """Logits of a bare run in which heads and MLPs outside a circuit give other values."""
    handles = []
    for name, (module, side) in ends(hf, shape).items():
        if side == "input":

            def before(_: nn.Module, args: Any, name: str = name) -> Any:
                z = args[0].clone().unflatten(-1, (shape.heads, -1))
                other = given[name].unflatten(-1, (shape.heads, -1))
                for head in range(shape.heads):
                    if f"{name}.h{head}" not in keep:
                        z[:, :, head] = other[:, :, head]
                return (z.flatten(-2), *args[1:])

            handles.append(module.register_forward_pre_hook(before))
        elif name not in keep:

            def after(_: nn.Module, args: Any, out: Tensor, name: str = name) -> Tensor:
                return given[name].expand_as(out)

            handles.append(module.register_forward_hook(after))
    try:
        with torch.no_grad():
            return hf(ids).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("mode", ["corrupt", "mean", "zero", "resample"])
def test_ablated_nodes_are_those_of_raw_hooks(family: str, mode: Any) -> None:
    shape = Shape(family, dtype=torch.float64)
    hf = build(shape)
    drawn = torch.randint(3, (2,), generator=torch.Generator().manual_seed(4))
    given = {
        "corrupt": lambda: values(hf, shape, CORRUPT),
        "zero": lambda: {k: v * 0 for k, v in values(hf, shape, CLEAN).items()},
        "mean": lambda: {k: v.mean(0, True) for k, v in values(hf, shape, REFERENCE).items()},
        "resample": lambda: {k: v[drawn] for k, v in values(hf, shape, REFERENCE).items()},
    }[mode]()
    circuit = ["a0.h1", "a1.h0", "a1.h3", "m1"]
    everything = [f"a{i}.h{h}" for i in range(2) for h in range(4)] + ["m0", "m1"]
    rest = [one for one in everything if one not in circuit]
    runs = [ablated(hf, shape, CLEAN, keep, given) for keep in (everything, circuit, rest, [])]
    full, kept, removed, empty = (metric(one) for one in runs)

    found = faithfulness(
        lensbridge.load(hf),
        CLEAN,
        CORRUPT,
        metric,
        circuit,
        ablation=mode,
        reference=REFERENCE if mode in ("mean", "resample") else None,
        reduce="none",
        seed=4,
    )
    for one, wanted in [
        (found.full, full),
        (found.kept, kept),
        (found.removed, removed),
        (found.empty, empty),
        (found.per_example, (kept - empty) / (full - empty)),
    ]:
        torch.testing.assert_close(one, wanted)
    way = (full.mean() - empty.mean()).item()
    assert found.faithfulness == pytest.approx((kept.mean() - empty.mean()).item() / way)
    assert found.completeness == pytest.approx((removed.mean() - empty.mean()).item() / way)
    assert found.total == len(everything)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


def test_neurons_and_positions_can_be_nodes() -> None:
    hf = build(Shape("gpt2", dtype=torch.float64))
    model, down = lensbridge.load(hf), Layer(hf, "gpt2", 1).down
    every = [*(n for n in enumerate_nodes(model, ["head", "neuron"]) if str(n) != "m1.n7")]
    other: dict[str, Tensor] = {}
    handle = down.register_forward_pre_hook(lambda _, args: other.update(x=args[0].clone()))
    hf(CORRUPT)
    handle.remove()

    def swap(_: nn.Module, args: Any) -> Any:
        x = args[0].clone()
        x[..., 7] = other["x"][..., 7]
        return (x,)

    handle = down.register_forward_pre_hook(swap)
    wanted = total(hf(CLEAN).logits)
    handle.remove()
    found = faithfulness(model, CLEAN, CORRUPT, total, every)
    torch.testing.assert_close(found.kept, wanted.detach())
    here = [n for n in enumerate_nodes(model, ["head", "mlp"], positions=7) if n.position != 1]
    by_position = faithfulness(model, CLEAN, CORRUPT, total, here)
    assert by_position.total == 7 * 10
    _, values_there = model.run_with_cache(CORRUPT)

    def at_one(value: Tensor, hook: Any) -> None:
        value[:, 1] = values_there[hook.name][:, 1]

    points = [f"blocks.{i}.{p}" for i in range(2) for p in ("attn.hook_z", "hook_mlp_out")]
    patched = model.run_with_hooks(CLEAN, [(point, at_one) for point in points])
    torch.testing.assert_close(by_position.kept, total(patched).detach())


def t5_parts(hf: Any) -> dict[str, tuple[nn.Module, str]]:
    """The output projections and MLPs of both stacks, where they are in T5."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for i in range(2):
        for front, stack in (("encoder.", hf.encoder), ("", hf.decoder)):
            layers = stack.block[i].layer
            found[f"{front}a{i}"] = (layers[0].SelfAttention.o, "input")
            found[f"{front}m{i}"] = (layers[-1].DenseReluDense, "output")
        found[f"c{i}"] = (hf.decoder.block[i].layer[1].EncDecAttention.o, "input")
    return found


def test_circuits_of_both_stacks_of_an_encoder_decoder() -> None:
    model = tiny("T5ForConditionalGeneration")
    hf: Any = model.hf_model
    decoded = [torch.tensor([[0, 8, 9], [0, 3, 4]]), torch.tensor([[0, 8, 5], [0, 7, 4]])]
    given = [
        {"input_ids": ids, "decoder_input_ids": more}
        for ids, more in zip((CLEAN, CORRUPT), decoded, strict=True)
    ]
    circuit = ["encoder.a0.h1", "encoder.m1", "decoder.a1.h2", "c0.h3", "c1.h0", "m0"]
    keep = [one.removeprefix("decoder.") for one in circuit]
    parts, other = t5_parts(hf), dict[str, Tensor]()
    handles = [
        module.register_forward_pre_hook(lambda _, args, n=n: other.update({n: args[0].clone()}))
        if side == "input"
        else module.register_forward_hook(lambda _, args, out, n=n: other.update({n: out.clone()}))
        for n, (module, side) in parts.items()
    ]
    with torch.no_grad():
        low = metric(hf(**given[1]).logits)
    for handle in handles:
        handle.remove()

    def swapped(_: nn.Module, args: Any, name: str) -> Any:
        z, there = (one.unflatten(-1, (4, -1)).clone() for one in (args[0], other[name]))
        for head in range(4):
            if f"{name}.h{head}" not in keep:
                z[:, :, head] = there[:, :, head]
        return (z.flatten(-2),)

    handles = [
        module.register_forward_pre_hook(partial(swapped, name=name))
        if side == "input"
        else module.register_forward_hook(lambda _, args, out, n=name: other[n])
        for name, (module, side) in parts.items()
        if name not in keep
    ]
    with torch.no_grad():
        wanted = metric(hf(**given[0]).logits)
    for handle in handles:
        handle.remove()
    found = faithfulness(model, *given, metric, circuit, reduce="none")
    torch.testing.assert_close(found.kept, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.corrupt, low, rtol=1e-4, atol=1e-5)
    assert found.total == 2 * (4 + 1) + 2 * (4 + 4 + 1)
    scored = attribution_patch(model, *given, total, stack="encoder", positions=True)
    best = scored.top_nodes(5)
    assert all(str(node).startswith("encoder.") for node, _ in best)
    at_positions = faithfulness(model, *given, total, best)
    assert at_positions.total == 7 * 10 + 3 * 18
    screened = screen(model, *given, total, k=3, stack="encoder", units=["head", "mlp"])
    for part, exact in zip(screened.parts, screened.exact, strict=True):
        rest = Circuit.of(enumerate_nodes(model)) | Circuit.of(
            enumerate_nodes(model, stack="encoder")
        )
        alone = faithfulness(model, given[1], given[0], total, rest - Circuit.of([part]))
        torch.testing.assert_close(exact, alone.kept - alone.full, rtol=1e-4, atol=1e-5)


# --- edges ---------------------------------------------------------------------------------------

FAMILIES = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "GPTJForCausalLM",
    "LlamaForCausalLM",
    "GraniteForCausalLM",
    "MixtralForCausalLM",
    "DeepseekV3ForCausalLM",
    "Qwen3NextForCausalLM",
    "FalconH1ForCausalLM",
    "JambaForCausalLM",
    "Gemma2ForCausalLM",
    "Olmo2ForCausalLM",
    "BertForMaskedLM",
    "MiniMaxForCausalLM",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(name: str) -> None:
    model = tiny(name)
    graph = Graph.of(model)
    with torch.no_grad():
        clean, corrupt = (metric(model.hf_model(ids).logits) for ids in (CLEAN, CORRUPT))
    found = faithfulness(model, CLEAN, CORRUPT, metric, graph.edges, reduce="none")
    for one, wanted in [
        (found.kept, clean),
        (found.full, clean),
        (found.empty, corrupt),
        (found.removed, corrupt),
        (found.corrupt, corrupt),
    ]:
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)
    assert found.faithfulness == pytest.approx(1.0, abs=1e-4)
    assert found.total == len(graph.edges)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPTJForCausalLM", "LlamaForCausalLM"])
@pytest.mark.parametrize(
    "edge", [("a0.h1", "a1.h1<q>"), ("a0.h0", "a1.h0<v>"), ("m0", "a1.h1<k>"), ("a0.h2", "m1")]
)
def test_an_edge_left_out_is_a_path_patched(name: str, edge: tuple[str, str]) -> None:
    model = tiny(name)
    out = Circuit.of([edge])
    found = faithfulness(
        model, CLEAN, CORRUPT, total, Circuit(edges=frozenset(Graph.of(model).edges)) - out
    )
    wanted = path_patch(model, CORRUPT, CLEAN, *edge, total)
    torch.testing.assert_close(found.kept, wanted.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "zero", "resample"])
def test_replaced_edges_into_the_logits_by_hand(mode: Any) -> None:
    """The direct path alone is replaced: the final stream, less what one head and one MLP wrote."""
    hf = build(Shape("llama", dtype=torch.float64))
    model = lensbridge.load(hf)
    out = Circuit.of(["a0.h1->logits", "m0->logits"])
    keep = Circuit(edges=frozenset(Graph.of(model).edges)) - out
    reference = None if mode == "zero" else REFERENCE
    found = faithfulness(
        model, CLEAN, CORRUPT, metric, keep, ablation=mode, reference=reference, reduce="none"
    )
    o, last = Layer(hf, "llama", 0).o, hf.model.norm
    drawn = torch.randint(3, (2,), generator=torch.Generator().manual_seed(0))

    def written(ids: Tensor) -> tuple[Tensor, Tensor]:
        rows = values(hf, Shape("llama"), ids)
        z = rows["a0"].unflatten(-1, (4, -1))[:, :, 1]
        return z @ o.weight.unflatten(1, (4, -1))[:, 1].mT + rows["m0"], rows["a0"]

    now = written(CLEAN)[0]
    other = {
        "zero": lambda: now * 0,
        "mean": lambda: written(REFERENCE)[0].mean(0, keepdim=True),
        "resample": lambda: written(REFERENCE)[0][drawn],
    }[mode]()
    handle = last.register_forward_pre_hook(lambda _, args: (args[0] - now + other,))
    wanted = metric(hf(CLEAN).logits)
    handle.remove()
    torch.testing.assert_close(found.kept, wanted.detach(), rtol=1e-5, atol=1e-6)


def test_an_edge_at_one_position_by_hand() -> None:
    """The direct path of a head to the logits, replaced at the last position alone."""
    hf = build(Shape("llama", dtype=torch.float64))
    model = lensbridge.load(hf)
    found = attribution_patch(model, CLEAN, CORRUPT, total, granularity="edge", positions=True)
    edge = Circuit.of(["a0.h1@6->logits@6"])
    every = Circuit(edges=frozenset(found.edge_scores))
    result = faithfulness(model, CLEAN, CORRUPT, metric, every - edge, reduce="none")
    weight, rows = Layer(hf, "llama", 0).o.weight.unflatten(1, (4, -1))[:, 1].mT, []
    for ids in (CLEAN, CORRUPT):
        z = values(hf, Shape("llama"), ids)["a0"].unflatten(-1, (4, -1))[:, :, 1]
        rows.append(z @ weight)
    change = (rows[1] - rows[0]) * (torch.arange(7) == 6)[:, None]
    handle = hf.model.norm.register_forward_pre_hook(lambda _, args: (args[0] + change,))
    wanted = metric(hf(CLEAN).logits)
    handle.remove()
    torch.testing.assert_close(result.kept, wanted.detach(), rtol=1e-5, atol=1e-6)
    whole = faithfulness(model, CLEAN, CORRUPT, metric, every, reduce="none")
    torch.testing.assert_close(whole.kept, whole.full, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.empty, whole.corrupt, rtol=1e-5, atol=1e-6)
    patched = screen(model, CLEAN, CORRUPT, total, k=3, granularity="edge", positions=True)
    assert patched.exact.shape == (3,)


def test_edges_of_an_attribution_fit_a_circuit() -> None:
    model = tiny("LlamaForCausalLM")
    best = attribution_patch(model, CLEAN, CORRUPT, total, granularity="edge").top_edges(60)
    few, many = (faithfulness(model, CLEAN, CORRUPT, total, best[:k]) for k in (5, 60))
    assert len(many.circuit) == 60
    assert abs(1 - many.recovered) < abs(1 - few.recovered)
    config = faithfulness(model, CLEAN, CORRUPT, total, best, FaithfulnessConfig("zero"))
    assert config.ablation == "zero"


# --- screening -----------------------------------------------------------------------------------


def test_screened_nodes_are_patched_for_real() -> None:
    shape = Shape("gpt2", dtype=torch.float64)
    hf = build(shape)
    model = lensbridge.load(hf)
    found = screen(model, CLEAN, CORRUPT, total, k=5)
    given = values(hf, shape, CLEAN)
    every = [str(node) for node in enumerate_nodes(model, ["head", "mlp"])]
    before = total(hf(CORRUPT).logits).detach()
    for label, estimate, exact in zip(found.labels, found.estimated, found.exact, strict=True):
        if label == "input":
            wanted = total(hf(CLEAN).logits).detach()
        else:
            keep = [one for one in every if one != label]
            wanted = total(ablated(hf, shape, CORRUPT, keep, given))
        torch.testing.assert_close(exact, wanted - before)
        assert float(estimate) == pytest.approx(found.attribution.node_scores[Node.of(label)])
    assert -1 <= found.rank_agreement <= 1
    assert [abs(e) for _, e in found.verified] == sorted(map(abs, found.exact.tolist()))[::-1]
    assert list(found.to_dataframe().columns) == ["part", "estimated", "exact"]
    by_edge = screen(model, CLEAN, CORRUPT, total, k=3, granularity="edge")
    for (sender, receiver), effect in zip(by_edge.parts, by_edge.exact, strict=True):  # type: ignore[misc]
        if receiver.kind != "logits" and sender.kind != "input":
            patched = path_patch(model, CLEAN, CORRUPT, str(sender), str(receiver), total)
            assert float(effect) == pytest.approx(float(patched.detach() - before), abs=1e-4)
    at_one = screen(model, CLEAN, CORRUPT, total, k=4, positions=True, units=["neuron", "q"])
    assert all(node.position is not None for node in at_one.parts)  # type: ignore[union-attr]


# --- a search on a trained model -----------------------------------------------------------------


def induction() -> tuple[Tensor, Tensor, int]:
    """Random tokens twice, and the same with another first half; how long a half is."""
    half = 12
    ids = torch.randint(100, 500, (4, 3 * half), generator=torch.Generator().manual_seed(0))
    start = torch.zeros(4, 1, dtype=torch.long)
    clean = torch.cat([start, ids[:, :half], ids[:, :half]], 1)
    corrupt = torch.cat([start, ids[:, half : 2 * half], ids[:, :half]], 1)
    return clean, corrupt, half


CLEAN_ROWS, CORRUPT_ROWS, HALF = induction()


def continued(logits: Tensor) -> Tensor:
    """Mean log-probability of the tokens of the second half."""
    logprobs = logits[:, HALF + 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, CLEAN_ROWS[:, HALF + 2 :, None]).mean()


def test_pruning_finds_the_heads_that_ablation_confirms() -> None:
    hf: Any = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    model = lensbridge.load(hf)
    found = prune_circuit(model, CLEAN_ROWS, CORRUPT_ROWS, continued, threshold=0.05)

    # each head's own ablation, by raw hooks on the bare model
    blocks = hf.transformer.h
    given: dict[int, Tensor] = {}
    handles = [
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, args, i=i: given.__setitem__(i, args[0].clone())
        )
        for i, block in enumerate(blocks)
    ]
    with torch.no_grad():
        hf(CORRUPT_ROWS)
    for handle in handles:
        handle.remove()
    full, drops = float(continued(hf(CLEAN_ROWS).logits).detach()), {}
    for i, block in enumerate(blocks):
        for head in range(4):

            def swap(_: nn.Module, args: Any, i: int = i, head: int = head) -> Any:
                z = args[0].clone()
                z[..., 32 * head : 32 * head + 32] = given[i][..., 32 * head : 32 * head + 32]
                return (z,)

            handle = block.attn.c_proj.register_forward_pre_hook(swap)
            with torch.no_grad():
                drops[i, head] = full - float(continued(hf(CLEAN_ROWS).logits))
            handle.remove()
    strong = {place for place, drop in drops.items() if drop > 0.3}
    assert max(drops, key=lambda place: drops[place]) == (2, 2)  # the induction head
    assert strong
    assert strong <= found.circuit.heads
    assert len(found.circuit) < len(found.trials)
    assert found.full == pytest.approx(full, abs=1e-4)
    told = faithfulness(model, CLEAN_ROWS, CORRUPT_ROWS, continued, found.circuit)
    assert float(told.kept) == pytest.approx(found.metric, abs=1e-4)
    assert told.faithfulness > 0.8


def test_pruning_edges_follows_its_rule() -> None:
    """Every step by hand: a part goes if the metric moves by less than the threshold."""
    model = tiny("GPT2LMHeadModel")
    best = attribution_patch(model, CLEAN, CORRUPT, total, granularity="edge").top_edges(25)
    threshold = 0.02
    found = prune_circuit(model, CLEAN, CORRUPT, total, threshold, over="edges", candidates=[*best])
    kept = Circuit.of(best)
    now = float(faithfulness(model, CLEAN, CORRUPT, total, kept).kept)
    for trial in found.trials:
        without = kept - Circuit.of([trial.part])
        metric_there = float(faithfulness(model, CLEAN, CORRUPT, total, without).kept)
        assert trial.metric == pytest.approx(metric_there)
        assert trial.kept == (abs(metric_there - now) >= threshold)
        if not trial.kept:
            kept, now = without, metric_there
    assert kept == found.circuit
    assert {trial.kept for trial in found.trials} == {True, False}
    nothing = prune_circuit(model, CLEAN, CORRUPT, total, math.inf)
    assert len(nothing.circuit) == 0


def test_a_search_that_is_interrupted_gives_what_it_has() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    left = [6]

    def stopping(logits: Tensor) -> Tensor:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return total(logits)

    whole = prune_circuit(model, CLEAN, CORRUPT, total, 0.2)
    found = prune_circuit(model, CLEAN, CORRUPT, stopping, 0.2)
    assert (found.partial, whole.partial) == (True, False)
    assert 0 < len(found.trials) < len(whole.trials)
    assert found.trials == whole.trials[: len(found.trials)]
    kept = {trial.part for trial in found.trials if trial.kept}
    untried = {trial.part for trial in whole.trials[len(found.trials) :]}
    assert set(found.circuit.labels) == kept | untried
    assert "interrupted" in repr(found)


def test_what_an_attribution_finds_is_a_circuit_with_the_input_in_it() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    top = attribution_patch(model, CLEAN, CORRUPT, total).top_nodes(11)[2:]
    assert Node("input") in dict(top)
    without = [node for node, _ in top if node.kind != "input"]
    one, other = (faithfulness(model, CLEAN, CORRUPT, total, part) for part in (top, without))
    assert (one.kept, one.removed, one.faithfulness) == (
        other.kept,
        other.removed,
        other.faithfulness,
    )
    mean: Any = {"ablation": "mean"}
    one = faithfulness(model, CLEAN, CORRUPT, total, top, mean_tokens=REFERENCE, **mean)
    other = faithfulness(model, CLEAN, CORRUPT, total, top, reference=REFERENCE, **mean)
    assert one.kept == other.kept


def test_bad_requests() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    pair: tuple[Any, Any] = (CLEAN, CORRUPT)
    for options, words in [
        ({"circuit": ["a5.h0"]}, "a5.h0 is not one of the"),
        ({"circuit": ["input->m0", "m7->logits"]}, "m7->logits is not one of the"),
        ({"circuit": ["m1->m0"]}, "m1->m0 is not one of the"),
        ({"circuit": [], "ablation": "median"}, "'corrupt', 'mean'"),
        ({"circuit": [], "ablation": "mean"}, "pass reference"),
        ({"circuit": [], "ablation": "mean", "reference": CLEAN[:, 1:]}, "of the same length"),
        ({"circuit": [], "reference": CLEAN}, "uses no reference"),
    ]:
        with pytest.raises(InputError, match=words):
            faithfulness(model, *pair, total, **options)
    with pytest.raises(InputError, match="which positions correspond"):
        faithfulness(model, CLEAN, CORRUPT[:, 1:], total, [])
    with pytest.raises(InputError, match="scalar"):
        faithfulness(model, *pair, metric, [])
    with pytest.raises(InputError, match="0 or more"):
        prune_circuit(model, *pair, total, -1.0)
    with pytest.raises(InputError, match="over edges"):
        prune_circuit(model, *pair, total, 0.1, over="edges", candidates=["m0"])
    with pytest.raises(InputError, match="1 or more, not"):
        screen(model, *pair, total, k=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf_model.modules())

"""Attribution patching against autograd on the bare model, exact patches and limits."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from contrast import CLEAN, CORRUPT, metric, tiny, total
from lensbridge_adapters import lensbridge_architectures
from tiny_models import Layer, Shape, build
from torch import Tensor, nn

import lensbridge
from lensbridge import LensModel
from lensbridge.causal import (
    AttributionConfig,
    AttributionResult,
    Graph,
    Node,
    attribution_patch,
    enumerate_edges,
    enumerate_nodes,
)
from lensbridge.errors import AbsentPointError, InputError
from lensbridge.patching import path_patch
from lensbridge.testing import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


# --- nodes against the bare model ----------------------------------------------------------------


def bare(
    model: nn.Module, ids: Tensor, ends: dict[str, tuple[nn.Module, str]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What goes in or out of modules, and the gradient of `total` there."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        kept[name] = value.clone()
        return kept[name]

    handles = []
    for name, (module, side) in ends.items():
        if side == "input":

            def before(_: nn.Module, args: Any, name: str = name) -> Any:
                return (keep(name, args[0]), *args[1:])

            handles.append(module.register_forward_pre_hook(before))
        else:

            def after(_: nn.Module, args: Any, out: Any, name: str = name) -> Any:
                return keep(name, out)

            handles.append(module.register_forward_hook(after))
    try:
        value = total(model(ids).logits)
    finally:
        for handle in handles:
            handle.remove()
    grads = torch.autograd.grad(value, list(kept.values()))
    return {k: v.detach() for k, v in kept.items()}, dict(zip(kept, grads, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_nodes_are_change_times_gradient(family: str, direction: Any) -> None:
    shape = Shape(family, dtype=torch.float64)
    hf = build(shape)
    ends: dict[str, tuple[nn.Module, str]] = {"input": (hf.get_input_embeddings(), "output")}
    for i in range(shape.layers):
        layer = Layer(hf, family, i)
        ends |= {f"a{i}": (layer.o, "input"), f"m{i}": (layer.mlp, "output")}
        ends[f"n{i}"] = (layer.down, "input")
    runs = {"clean": bare(hf, CLEAN, ends), "corrupt": bare(hf, CORRUPT, ends)}
    here, there = ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")
    wanted = {k: (runs[there][0][k] - runs[here][0][k]) * runs[here][1][k] for k in ends}

    model = lensbridge.load(hf)
    result = attribution_patch(
        model, CLEAN, CORRUPT, total, units=["input", "head", "mlp", "neuron"], direction=direction
    )
    by_pos = attribution_patch(
        model, CLEAN, CORRUPT, metric, reduce="none", positions=True, direction=direction
    )

    torch.testing.assert_close(result["input"], wanted["input"].sum())
    torch.testing.assert_close(by_pos["input"], wanted["input"].sum(-1).T)
    for i in range(shape.layers):
        heads = wanted[f"a{i}"].unflatten(-1, (shape.heads, -1)).sum(-1)
        torch.testing.assert_close(result["head"][i], heads.sum((0, 1)))
        torch.testing.assert_close(by_pos["head"][i], heads.permute(2, 1, 0))
        torch.testing.assert_close(result["mlp"][i], wanted[f"m{i}"].sum())
        torch.testing.assert_close(result["neuron"][i], wanted[f"n{i}"].sum((0, 1)))
    assert by_pos.axis_names["head"] == ("layer", "head", "position", "example")
    with torch.no_grad():
        ends_of = [metric(hf(ids).logits) for ids in (CORRUPT, CLEAN)]
    found = [by_pos.baseline, by_pos.target]
    for one, other in zip(found, ends_of if direction == "denoise" else ends_of[::-1], strict=True):
        torch.testing.assert_close(one, other)
    assert all(parameter.grad is None for parameter in hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


# --- edges on many families ----------------------------------------------------------------------

PLAIN = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "GPTJForCausalLM",
    "CodeGenForCausalLM",
    "OPTForCausalLM",
    "BloomForCausalLM",
    "MptForCausalLM",
    "FalconForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
    "CohereForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen3ForCausalLM",
    "GraniteForCausalLM",
    "ModernBertForMaskedLM",
    "FalconH1ForCausalLM",
    "JambaForCausalLM",
)
MIXTURES = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "GptOssForCausalLM")
GATED = ("Qwen3NextForCausalLM",)
LATENT = ("DeepseekV3ForCausalLM",)
SANDWICH = ("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM", "Glm4ForCausalLM")
POST_NORM = ("BertForMaskedLM", "AlbertForMaskedLM", "MiniMaxForCausalLM", "DogeForCausalLM")
"""Here the stream is no plain sum: it goes through norms, or is multiplied."""

EVERY = (*PLAIN, *MIXTURES, *GATED, *LATENT, *SANDWICH, *POST_NORM)


@cache
def edges(name: str) -> AttributionResult:
    return attribution_patch(tiny(name), CLEAN, CORRUPT, total, granularity="edge")


@cache
def gradient(name: str, point: str) -> Tensor:
    """Of the metric on the corrupted input."""
    return tiny(name).gradients(CORRUPT, [point], total).gradients[point]


@cache
def change(name: str, point: str) -> Tensor:
    """What a point holds in the clean run less what it holds in the corrupted one."""
    clean, corrupt = (tiny(name).run_with_cache(ids, [point])[1] for ids in (CLEAN, CORRUPT))
    return clean[point] - corrupt[point]


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal but for norms that compute in float32."""
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def read_at(model: LensModel, node: Node) -> str:
    """The point with what a receiver reads, one copy for each head."""
    if node.kind == "logits":
        return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    at = f"blocks.{node.layer}."
    if node.kind == "head":
        return f"{at}hook_{node.component}_input"
    return at + {"attn": "hook_attn_in", "mlp": "hook_mlp_in"}.get(node.kind, "mixer.hook_in")


@pytest.mark.parametrize("name", EVERY)
def test_edges_into_a_receiver_make_up_the_change_of_what_it_reads(name: str) -> None:
    """Against the gradient at the receiver's own point, which reruns the head natively."""
    model, result = tiny(name), edges(name)
    table = result["edge"].nan_to_num()
    for i, node in enumerate(result.receivers):
        if node.kind == "mixer" or node.component == "gate":
            continue
        point = read_at(model, node)
        product = change(name, point) * gradient(name, point)
        wanted = product[:, :, node.index] if node.kind == "head" else product
        close(table[:, i].sum(), wanted.sum())


@pytest.mark.parametrize("name", EVERY)
def test_every_edge_is_the_senders_change_times_the_receivers_gradient(name: str) -> None:
    """Written out from `hook_result` and the heads' inputs, as far as the stream is a plain sum."""
    if name in POST_NORM:
        pytest.skip("the stream goes through norms: the sum above and the limit below")
    model, result = tiny(name), edges(name)
    written = {
        "head": "attn.hook_result",
        "mlp": "hook_mlp_out",
        "mixer": "hook_mixer_out",
        "input": "hook_resid_pre",
    }
    points = {n: f"blocks.{n.layer or 0}.{written[n.kind]}" for n in result.senders}
    for j, receiver in enumerate(result.receivers):
        if receiver.kind == "mixer" or receiver.component == "gate":
            continue
        place = read_at(model, receiver)
        grad = gradient(name, place)
        grad = grad[:, :, receiver.index] if receiver.kind == "head" else grad
        for i, sender in enumerate(result.senders):
            delta = change(name, points[sender])
            delta = delta[:, :, sender.index] if sender.kind == "head" else delta
            if sender.kind == "input" and name in SANDWICH:
                continue  # it takes the biases too, which norms divide by what they divide by
            found = result["edge"][i, j]
            if not found.isnan():
                close(found, (delta * grad).sum())


@pytest.mark.parametrize("name", [*PLAIN, *MIXTURES, *LATENT])
def test_the_edges_of_a_sender_sum_to_its_node(name: str) -> None:
    """In a stream that is a plain sum, whoever reads a sender makes up its whole effect.

    Not where heads are gated: a node is the head before its gate, a sender behind it.
    """
    model, result = tiny(name), edges(name)
    nodes = attribution_patch(model, CLEAN, CORRUPT, total).node_scores
    for node, score in result.node_scores.items():
        assert score == pytest.approx(nodes[node], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPTJForCausalLM", "LlamaForCausalLM"])
def test_positions_examples_and_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    whole = edges(name)["edge"]
    monkeypatch.setattr("lensbridge.causal.edges.EdgeScores.budget", 5000)
    every = attribution_patch(
        model, CLEAN, CORRUPT, metric, granularity="edge", positions=True, reduce="none"
    )
    assert every.axis_names["edge"] == ("sender", "receiver", "position", "example")
    close(every["edge"].sum((-1, -2)).nan_to_num(), whole.nan_to_num())
    alone = attribution_patch(model, CLEAN[1:], CORRUPT[1:], total, granularity="edge")
    close(every["edge"][..., 1].sum(-1).nan_to_num(), alone["edge"].nan_to_num())
    averaged = attribution_patch(model, CLEAN, CORRUPT, metric, granularity="edge", reduce="mean")
    close(averaged["edge"].nan_to_num(), whole.nan_to_num() / 2)


# --- limits: a small corruption is patched exactly -----------------------------------------------


def nudged(model: LensModel, size: float) -> tuple[Tensor, Tensor]:
    """Embeddings of the corrupted input, and of one a little towards the clean one."""
    embed = model.hf_model.get_input_embeddings()
    with torch.no_grad():
        corrupt, clean = embed(CORRUPT), embed(CLEAN)
    return corrupt + size * (clean - corrupt), corrupt


@pytest.mark.parametrize(
    "name", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPTJForCausalLM", "DogeForCausalLM"]
)
def test_for_small_changes_attribution_is_the_exact_path_patch(name: str) -> None:
    model = tiny(name)
    paths = [
        ("a0.h1", "a1.h1<q>"),
        ("a0.h0", "a1.h0<k>"),
        ("a0.h2", "m1"),
        ("m0", "a1.h0<v>"),
        ("a0.h0", "logits"),
    ]
    errors = []
    for size in (1e-1, 1e-2):
        clean, corrupt = nudged(model, size)
        result = attribution_patch(model, clean, corrupt, total, granularity="edge")
        before = total(model(corrupt)).detach()
        gaps = []
        for sender, receiver in paths:
            exact = path_patch(model, clean, corrupt, sender, receiver, total) - before
            estimate = result.edge_scores[Node.of(sender), Node.of(receiver)]
            gaps.append(abs(float(exact) - estimate) / abs(float(exact)))
        errors.append(max(gaps))
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.05


# --- the way between the inputs ------------------------------------------------------------------


def test_one_step_is_the_plain_gradient_and_many_add_up_to_the_whole_difference() -> None:
    model = tiny("GPT2LMHeadModel")
    plain = attribution_patch(model, CLEAN, CORRUPT, total)
    for method in ("ig_inputs", "ig_activations"):
        one = attribution_patch(model, CLEAN, CORRUPT, total, method=method, steps=1)  # type: ignore[arg-type]
        close(one["head"], plain["head"])
    gap = (total(model(CLEAN)) - total(model(CORRUPT))).detach()
    errors = []
    for steps in (8, 32):
        many = attribution_patch(model, CLEAN, CORRUPT, total, method="ig_inputs", steps=steps)
        errors.append(float((many["input"] - gap).abs()))
        as_config = attribution_patch(
            model, CLEAN, CORRUPT, total, AttributionConfig("edge", ig_steps=steps)
        )
        assert as_config.node_scores[Node("input")] == pytest.approx(float(many["input"]))
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("name", ["BloomForCausalLM", "BertForMaskedLM", "GPT2LMHeadModel"])
def test_the_input_is_where_it_enters_the_stream(name: str) -> None:
    """Behind the norm that BLOOM and BERT have after their embeddings; as autograd has it."""
    model = tiny(name)
    layer = {"bloom": "transformer.h.0", "bert": "bert.encoder.layer.0", "gpt2": "transformer.h.0"}
    first = model.hf_model.get_submodule(layer[model.hf_model.config.model_type])
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    value = total(model.hf_model(CORRUPT).logits)
    (grad,) = torch.autograd.grad(value, kept)
    with torch.no_grad():
        model.hf_model(CLEAN)
    handle.remove()
    delta = kept[1] - kept[0].detach()
    found = attribution_patch(model, CLEAN, CORRUPT, total, units=["input"], positions=True)
    close(found["input"], (delta * grad).sum((0, 2)))
    gap = float((total(model(CLEAN)) - total(model(CORRUPT))).detach())
    many = attribution_patch(model, CLEAN, CORRUPT, total, method="ig_inputs", steps=64)
    assert float(many["input"]) == pytest.approx(gap, rel=0.1)


def test_inputs_are_interpolated_as_by_hand() -> None:
    model = tiny("LlamaForCausalLM")
    embed = model.hf_model.get_input_embeddings()
    base, other = embed(CORRUPT).detach(), embed(CLEAN).detach()
    grads = []
    for k in range(4):
        mixed = (base + k / 4 * (other - base)).requires_grad_()
        logits = model.hf_model(inputs_embeds=mixed).logits
        grads.append(torch.autograd.grad(total(logits), mixed)[0])
    wanted = ((other - base) * torch.stack(grads).mean(0)).sum()
    found = attribution_patch(model, CLEAN, CORRUPT, total, method="ig_inputs", steps=4)
    close(found["input"], wanted)


def test_activations_along_their_way_give_the_exact_patch_of_a_layer() -> None:
    """The integral of a gradient is a difference: here of patching all heads of a layer, an MLP."""
    model = tiny("LlamaForCausalLM")
    _, clean = model.run_with_cache(CLEAN)
    found = attribution_patch(model, CLEAN, CORRUPT, total, method="ig_activations", steps=64)
    before = total(model(CORRUPT)).detach()
    for unit, point in (("head", "blocks.0.attn.hook_z"), ("mlp", "blocks.0.hook_mlp_out")):
        patched = model.run_with_hooks(CORRUPT, [(point, lambda v, hook: clean[hook.name])])
        exact = float(total(patched).detach() - before)
        assert float(found[unit][0].sum()) == pytest.approx(exact, rel=0.04)
    by_edge = attribution_patch(
        model, CLEAN, CORRUPT, total, method="ig_activations", steps=16, granularity="edge"
    )
    by_node = attribution_patch(model, CLEAN, CORRUPT, total, method="ig_activations", steps=16)
    assert by_edge.node_scores[Node("mlp", 0)] == pytest.approx(float(by_node["mlp"][0]))


# --- queries and keys through softmax ------------------------------------------------------------


def by_hand(model: LensModel, unit: str, key: int | None) -> Tensor:
    """Effect of layer 0's heads: softmax of the bare model's own scores, then the gradient."""
    point = {"q": "blocks.0.attn.hook_q", "k": "blocks.0.attn.hook_k"}[unit]
    where = "blocks.0.attn.hook_pattern"
    _, clean = model.run_with_cache(CLEAN, [point])
    _, grads = model.gradients(CORRUPT, [where], total)
    _, base = model.run_with_cache(CORRUPT, [where])

    def put(value: Tensor, hook: Any) -> Tensor:
        if key is None:
            return clean[point]
        value[:, key] = clean[point][:, key]
        return value

    noted: dict[str, Tensor] = {}
    hooks: list[tuple[str, Callable[..., Any]]] = [
        (point, put),
        (where, lambda value, hook: noted.update(p=value.clone())),
    ]
    model.run_with_hooks(CORRUPT, hooks)
    return ((noted["p"] - base[where]) * grads[where]).sum((0, 2, 3))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "GptOssForCausalLM"])
def test_queries_and_keys_go_through_softmax(name: str) -> None:
    model = tiny(name)
    fixed = attribution_patch(model, CLEAN, CORRUPT, total, units=["q", "k"], attention_fix=True)
    groups = model.cfg.n_key_value_heads
    close(fixed["q"][0], by_hand(model, "q", None))
    close(fixed["k"][0], by_hand(model, "k", None).unflatten(0, (groups, -1)).sum(-1))
    each = attribution_patch(
        model, CLEAN, CORRUPT, total, units=["q", "k"], attention_fix=True, positions=True
    )
    for key in (1, 3):
        wanted = by_hand(model, "k", key).unflatten(0, (groups, -1)).sum(-1)
        close(each["k"][0, :, key], wanted)
    close(each["q"].sum(-1), fixed["q"])


def test_the_fix_helps_where_attention_is_saturated() -> None:
    hf = build(Shape("gpt2", dtype=torch.float64))
    layer = Layer(hf, "gpt2", 1)
    with torch.no_grad():  # queries and keys so large that softmax picks one position
        width = hf.config.n_embd
        layer.qkv["q"].weight[:, : 2 * width] *= 6
    model = lensbridge.load(hf)
    clean, point = model.run_with_cache(CLEAN, ["q"])[1], "blocks.1.attn.hook_q"
    before, exact = total(model(CORRUPT)), []
    for head in range(model.cfg.n_heads):

        def put(value: Tensor, hook: Any, head: int = head) -> None:
            value[:, :, head] = clean[point][:, :, head]

        exact.append(total(model.run_with_hooks(CORRUPT, [(point, put)])) - before)
    wanted = torch.stack(exact).detach()
    plain, fixed = (
        attribution_patch(model, CLEAN, CORRUPT, total, units=["q"], attention_fix=fix)["q"][1]
        for fix in (False, True)
    )
    assert (fixed - wanted).norm() < 0.5 * (plain - wanted).norm()


# --- results and refusals ------------------------------------------------------------------------


def test_a_result_says_what_its_numbers_are_of() -> None:
    model = tiny("LlamaForCausalLM")
    result = attribution_patch(model, CLEAN, CORRUPT, total, positions=True)
    frame = result.to_dataframe()
    assert len(frame) == len(result.labels) == len(enumerate_nodes(model)) * 7
    best, score = result.top(1)[0]
    assert abs(score) == max(abs(v) for v in result.node_scores.values())
    assert result.node_scores[Node.of(best)] == score
    assert set(result.node_scores) == set(enumerate_nodes(model, positions=7))
    row = frame[(frame.node == "a1.h2") & (frame.position == 3)]
    assert row.score.item() == pytest.approx(float(result["head"][1, 2, 3]))
    by_edge = edges("LlamaForCausalLM")
    assert set(by_edge.edge_scores) == set(enumerate_edges(model))
    sender, receiver, score = by_edge.top_edges(1, by="high")[0]
    assert score == max(by_edge.edge_scores.values())
    assert by_edge.top(1, by="high")[0] == (f"{sender}->{receiver}", score)
    with pytest.raises(InputError, match="There are scores for"):
        result["neuron"]


def test_edges_run_forward_only() -> None:
    for name in ("GPT2LMHeadModel", "GPTJForCausalLM"):
        graph, parallel = Graph.of(tiny(name)), name.startswith("GPTJ")
        readers = {(str(s), str(r)) for s, r in graph.edges}
        assert (("a0.h0", "m0") in readers) != parallel
        assert ("a0.h0", "a1.h1<k>") in readers
        assert ("m1", "logits") in readers
        assert ("a1.h0", "a1.h0<q>") not in readers
        assert ("m0", "a0.h0<q>") not in readers


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_padded_rows_score_as_each_alone(family: str, granularity: Any) -> None:
    model = lensbridge.load(build(Shape(family, dtype=torch.float64)))
    pad = torch.tensor([[0, 0], [0, 0]])
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[:, :2] = 0
    given = [
        {"input_ids": torch.cat([pad, ids], 1), "attention_mask": mask} for ids in (CLEAN, CORRUPT)
    ]
    padded = attribution_patch(model, *given, total, granularity=granularity)
    alone = attribution_patch(model, CLEAN, CORRUPT, total, granularity=granularity)
    for unit, scores in alone.scores.items():
        close(padded[unit].nan_to_num(), scores.nan_to_num())


@pytest.mark.parametrize("granularity", ["node", "edge"])
def test_half_precision_models_score_nearly_the_same(granularity: Any) -> None:
    architecture = next(a for a in lensbridge_architectures() if "LlamaForCausalLM" in a.classes)
    found = [
        attribution_patch(
            lensbridge.load(tiny_model(architecture, dtype=dtype)),
            CLEAN,
            CORRUPT,
            total,
            granularity=granularity,
        )
        for dtype in (torch.float64, torch.bfloat16)
    ]
    for unit in found[0].scores:
        exact, rough = (one[unit].nan_to_num() for one in found)
        assert rough.dtype == torch.float32
        assert float((rough - exact).norm() / exact.norm()) < 0.1


def test_encoder_and_decoder_nodes() -> None:
    model = tiny("T5ForConditionalGeneration")
    more = {"decoder_input_ids": torch.tensor([[0, 8, 9], [0, 3, 4]])}
    given = [{"input_ids": ids, **more} for ids in (CLEAN, CORRUPT)]
    for stack in ("encoder", "decoder"):
        result = attribution_patch(model, *given, total, stack=stack)
        point = f"{stack}.1.attn.hook_z"
        _, grads = model.gradients(given[1], [point], total)
        values = [model.run_with_cache(one, [point])[1][point] for one in given]
        close(result["head"][1], ((values[0] - values[1]) * grads[point]).sum((0, 1, 3)))
    with pytest.raises(InputError, match="two, joined by cross-attention"):
        attribution_patch(model, *given, total, granularity="edge")


def test_bad_requests_are_refused_before_anything_runs() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    pair: tuple[Any, Any] = (CLEAN, CORRUPT)
    ran: list[int] = []
    handle = model.hf_model.register_forward_hook(lambda *call: ran.append(1))
    for options, words in [
        ({"granularity": "layer"}, "'node' or 'edge'"),
        ({"method": "gradient", "steps": 3}, "'gradient' takes one step"),
        ({"method": "ig"}, "'ig_inputs'"),
        ({"direction": "back"}, "'denoise' or 'noise'"),
        ({"attention_fix": True}, "units 'q' or 'k'"),
        ({"units": ["heads"]}, "no unit 'heads'"),
        ({"stack": "encoder"}, "no stack 'encoder'"),
    ]:
        with pytest.raises(InputError, match=words):
            attribution_patch(model, *pair, total, **options)
    with pytest.raises(InputError, match=r"last 3 \(-3 to -1\)"):
        attribution_patch(model, CLEAN, CORRUPT[:, 1:], total)
    with pytest.raises(InputError, match="1 clean and 2"):
        attribution_patch(model, CLEAN[:1], CORRUPT, total)
    with pytest.raises(AbsentPointError):
        attribution_patch(model, *pair, total, units=["mixer"])
    assert not ran
    handle.remove()
    with pytest.raises(InputError, match="scalar"):
        attribution_patch(model, *pair, metric)
    with pytest.raises(InputError, match="has no gradient"):
        attribution_patch(model, *pair, lambda logits: total(logits).detach())
    with pytest.raises(InputError, match="training mode"):
        attribution_patch(model.train(), *pair, total)
    model.eval()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf_model.modules())

"""Experiments through nnsight, serialised as for a server, beside the same ones on a lens."""

import random
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pages import ROOT, Page
from tiny_models import Shape, build
from torch import Tensor

import lensbridge
from lensbridge import Experiment
from lensbridge.engines.nnsight import NNsight
from lensbridge.errors import UnsupportedError
from lensbridge.experiments import KL, LogitDiff, Loss, Prob, Rank
from lensbridge.interventions import (
    Add,
    Apply,
    GatedSteer,
    Intervention,
    Mean,
    Noise,
    NormPreservingSteer,
    Project,
    Replace,
    Resample,
    Scale,
    Steer,
    Swap,
    When,
    Zero,
)

pytestmark = pytest.mark.peers

FAMILIES = ("gpt2", "llama", "qwen3", "neox", "gemma2")
PAIRS = 12
TEXTS = ["The Eiffel Tower is in the city of", "The Tower is in"]
IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
KERNEL = ("hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern")


def tiny(family: str) -> transformers.PreTrainedModel:
    if family in ("gpt2", "llama", "neox"):
        return build(Shape(family))
    sizes = {
        "vocab_size": 61,
        "hidden_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 20,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config: Any = (
        transformers.Qwen3Config(**sizes)
        if family == "qwen3"
        else transformers.Gemma2Config(**sizes, query_pre_attn_scalar=6, sliding_window=4)
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@cache
def pair(family: str) -> tuple[Any, NNsight]:
    """A lens, and the same model through nnsight, whose traces go through its serialisation."""
    lens = lensbridge.load(tiny(family))
    return lens, NNsight(lens.hf_model, tokenizer=demo()[0].tokenizer, remote="local")


@cache
def demo() -> tuple[Any, NNsight]:
    lens = lensbridge.load("demo")
    return lens, NNsight(lens.hf_model, tokenizer=lens.tokenizer, remote="local")


def close(one: Tensor, other: Tensor, most: float = 1e-6) -> bool:
    return one.shape == other.shape and torch.allclose(
        one, other, rtol=most, atol=most, equal_nan=True
    )


# --- every point ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_is_read_as_it_is_or_refused_by_name(family: str) -> None:
    lens, elsewhere = pair(family)
    assert set(elsewhere.points) | set(elsewhere.refused) == set(lens.hook_names)
    assert all(name.endswith(KERNEL) for name in elsewhere.refused)
    ids = IDS
    with torch.no_grad():
        logits, expected = lens.run_with_cache(ids, elsewhere.points)
    found, kept = elsewhere.run_with_cache(ids, elsewhere.points)
    assert torch.equal(found, logits)
    wrong = [name for name in elsewhere.points if not torch.equal(kept[name], expected[name])]
    assert not wrong
    assert set(elsewhere.lens.vocabulary.select("blocks.1.*")) <= set(elsewhere.points)
    for name in elsewhere.refused:
        with pytest.raises(UnsupportedError, match=f"{name} cannot be reached.*attention function"):
            elsewhere.run_with_cache(ids, name)
        with pytest.raises(UnsupportedError, match=name):
            elsewhere.run_with_interventions(ids, Zero(name))


def test_a_mixture_of_experts_has_its_choices_and_not_the_inside_of_experts() -> None:
    config = transformers.MixtralConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=20,
        num_local_experts=4,
    )
    torch.manual_seed(0)
    lens = lensbridge.load(transformers.MixtralForCausalLM(config).eval())
    elsewhere = NNsight(lens.hf_model, tokenizer=demo()[0].tokenizer, remote="local")
    asked = ["mlp_out", "hook_expert_weights"]
    names = [name for name in elsewhere.points if name.endswith(tuple(asked))]
    assert len(names) == 4
    with torch.no_grad():
        _, expected = lens.run_with_cache(IDS, names)
    _, kept = elsewhere.run_with_cache(IDS, names)
    assert all(torch.equal(kept[name], expected[name]) for name in names)
    for name in ("blocks.0.mlp.experts.1.hook_post", "blocks.0.mlp.hook_router_logits"):
        with pytest.raises(UnsupportedError, match="cannot be reached"):
            elsewhere.run_with_cache(IDS, name)


def test_a_model_that_asks_for_values_is_refused() -> None:
    config = transformers.DbrxConfig(
        vocab_size=61,
        d_model=24,
        n_layers=1,
        n_heads=4,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = transformers.DbrxForCausalLM(config).eval()
    away = NNsight(model, tokenizer=demo()[0].tokenizer, remote="local")
    with pytest.raises(UnsupportedError, match="DbrxForCausalLM computes with depends on values"):
        away.run_with_cache(IDS, "resid_post")


# --- random pairs of point and intervention ------------------------------------------------------


def an_intervention(draw: random.Random, lens: Any, name: str, shape: torch.Size) -> Intervention:
    """An intervention that fits a point whose value has this shape."""
    axes = lens.engine.sites[name].axes.split()
    width, places = shape[-1], {}
    if "p" in axes and "b" in axes and draw.random() < 0.7:
        places["positions"] = draw.choice([3, "last", slice(1, 4), [0, 5], [[1, 2], [4, 6]]])
    if "h" in axes[2:3]:
        places["heads"] = draw.choice([None, 1, [0, 2]])
    elif draw.random() < 0.3 and width > 3:
        places["neurons"] = [0, 3]
    generator = torch.Generator().manual_seed(draw.randrange(1000))
    entries = 2 if places.get("neurons") else width
    vector = torch.randn(entries, generator=generator)
    source = torch.randn(shape, generator=generator)
    kinds = [
        Zero(name, **places),
        Scale(name, 1.7, **places),
        Add(name, vector, factor=0.5, **places),
        Replace(name, 0.3, **places),
        Steer(name, vector, 2.0, unit="norm", **places),
        Noise(name, 0.4, seed=3, **places),
        Resample(name, seed=1, **places),
        Mean(name, **places),
        Swap(name, source, **places),
    ]
    if "neurons" not in places:
        kinds.append(Project(name, torch.randn(width, generator=generator), **places))
    return draw.choice(kinds)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_edits_give_what_a_lens_gives(family: str) -> None:
    lens, elsewhere = pair(family)
    draw = random.Random(f"edits of {family}")
    names = [n for n in elsewhere.points if not n.endswith(("hook_pos_embed", "hook_embed"))]
    with torch.no_grad():
        bare, kept = lens.run_with_cache(IDS, names)
    changed = 0
    for name in draw.sample(names, PAIRS):
        edit = an_intervention(draw, lens, name, kept[name].shape)
        with torch.no_grad(), lens.intervene(edit):
            expected, after = lens.run_with_cache(IDS, ["resid_post"])
        found = elsewhere.run(Experiment(IDS, points=["resid_post"], interventions=[edit]))
        assert close(found.logits, expected), edit
        assert all(close(found.cache[one], after[one]) for one in after), edit
        changed += not torch.equal(expected, bare)
    assert changed >= PAIRS * 2 // 3


def test_several_edits_at_one_point_act_in_their_order() -> None:
    lens, elsewhere = pair("llama")
    edits = [Add(("z", 1), 1.0, heads=1), Scale(("z", 1), 3.0, heads=[1, 2]), Zero(("mlp_out", 0))]
    expected = lens.run_with_interventions(IDS, edits)
    assert torch.equal(elsewhere.run_with_interventions(IDS, edits), expected)


def test_an_edit_that_changes_nothing_leaves_the_native_numbers() -> None:
    lens, elsewhere = pair("gemma2")
    edits = [Scale("blocks.0.ln1.hook_scale", 1.0), Scale(("result", 1), 1.0)]
    with torch.no_grad():
        assert torch.equal(elsewhere.run_with_interventions(IDS, edits), lens(IDS))


def half(value: Tensor) -> Tensor:
    return value * 0.5


@pytest.mark.parametrize(
    "edit",
    [
        Apply(("resid_post", 1), half, positions=[1, 3]),
        GatedSteer(("resid_post", 1), torch.arange(128.0), 0.1, gate=torch.ones(128)),
        NormPreservingSteer(("mlp_out", 1), torch.arange(128.0), positions="last"),
        Zero(("z", 1), heads=2, examples=[1]),
    ],
    ids=lambda edit: type(edit).__name__,
)
def test_every_kind_of_intervention_is_recorded(edit: Intervention) -> None:
    lens, elsewhere = demo()
    expected = lens.run_with_interventions(TEXTS, edit)
    assert torch.equal(elsewhere.run_with_interventions(TEXTS, edit), expected)
    assert not torch.equal(expected, lens(TEXTS))


def test_modules_whose_names_nnsight_uses_are_found() -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=61, intermediate_size=20, **sizes)
    torch.manual_seed(0)
    lens = lensbridge.load(transformers.BertForMaskedLM(config).eval())
    tokenizer = deepcopy(demo()[0].tokenizer)
    tokenizer.mask_token = tokenizer.eos_token
    away = NNsight(lens.hf_model, tokenizer=tokenizer, remote="local", task="fill-mask")
    assert all(name.endswith(KERNEL) for name in away.refused)
    with torch.no_grad():
        _, expected = lens.run_with_cache(IDS, away.points)
    _, kept = away.run_with_cache(IDS, away.points)
    assert all(torch.equal(kept[name], expected[name]) for name in away.points)
    edit = Scale(("mlp_out", 0), 2.0)
    found = away.run_with_interventions(IDS, edit)
    assert torch.equal(found, lens.run_with_interventions(IDS, edit))
    assert ".layer[0].E_output." in away.code(Experiment(IDS, interventions=[edit]))


# --- whole experiments ---------------------------------------------------------------------------


def everything() -> Experiment:
    return Experiment(
        TEXTS,
        points=[("resid_post", -1), "z"],
        interventions=[Zero(("z", 1), heads=3, positions="last")],
        metric={
            "difference": LogitDiff(" Paris", " Rome"),
            "divergence": KL(),
            "prob": Prob(" Paris"),
            "rank": Rank(" Rome"),
        },
        sweep={
            **{f"head {h}": Zero(("z", 1), heads=h) for h in range(4)},
            "two": [Zero(("mlp_out", 2)), Scale(("resid_mid", 1), 2.0)],
        },
        pos_slice="last",
        returns=("logits", "loss"),
    )


def test_an_experiment_gives_the_same_result() -> None:
    lens, elsewhere = demo()
    found, expected = elsewhere.run(everything()), lens.run(everything())
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    assert set(found.cache) == set(expected.cache)
    assert all(torch.equal(found.cache[name], expected.cache[name]) for name in expected.cache)
    assert found.metrics.keys() == expected.metrics.keys()
    assert all(torch.equal(found.metrics[one], expected.metrics[one]) for one in found.metrics)
    assert close(found.sweep.values, expected.sweep.values, 1e-5)  # a lens runs cells in batches
    assert close(found.sweep.baseline, expected.sweep.baseline)
    assert found.sweep.grid.names == expected.sweep.grid.names
    assert found.engine == "nnsight"


def test_an_experiment_from_json_gives_the_same() -> None:
    _, elsewhere = demo()
    again = elsewhere.run(Experiment.from_json(everything().to_json()))
    assert torch.equal(again.logits, elsewhere.run(everything()).logits)


def test_gradients_are_those_of_a_lens_also_of_frozen_weights() -> None:
    lens, elsewhere = demo()
    points = ["resid_pre", ("z", 2), "blocks.1.ln1.hook_scale", ("result", 1)]
    metric = LogitDiff(" Paris", " Rome")
    edits = [Scale(("mlp_out", 1), 0.5)]
    asked = Experiment(TEXTS, interventions=edits, metric=metric, gradients=points)
    expected = lens.run(asked).gradients
    lens.hf_model.requires_grad_(False)
    try:
        frozen = elsewhere.run(asked).gradients
    finally:
        lens.hf_model.requires_grad_(True)
    for found in (elsewhere.run(asked).gradients, frozen):
        assert all(close(found[name], expected[name], 1e-5) for name in expected)
        assert all(bool(found[name].any()) for name in expected)


def test_a_metric_that_keeps_examples_does_so_in_sweeps() -> None:
    lens, elsewhere = demo()
    metric = Loss(reduce="none")
    asked = Experiment(TEXTS, metric=metric, sweep=[Zero(("z", 0), heads=h) for h in range(2)])
    found, expected = elsewhere.run(asked).sweep, lens.run(asked).sweep
    assert found.values.shape == (2, 2)
    assert close(found.values, expected.values)
    assert repr(found) == repr(expected)


# --- generation ----------------------------------------------------------------------------------


def steering() -> Iterator[tuple[str, list[Intervention]]]:
    vector = torch.randn(128, generator=torch.Generator().manual_seed(0)) * 3
    yield "none", []
    yield "always", [Add(("resid_post", 2), vector)]
    yield "prompt", [Add(("resid_post", 2), vector, when="prefill")]
    yield "new", [Add(("resid_post", 2), vector, when="decode")]
    yield "step", [Add(("resid_post", 1), vector, when=When("decode", steps=[2]))]
    yield "last", [Zero(("z", 1), heads=2, positions="last"), Scale(("mlp_out", 0), 2.0)]


@pytest.mark.parametrize(("name", "edits"), list(steering()), ids=[name for name, _ in steering()])
def test_generation_gives_the_same_text(name: str, edits: list[Intervention]) -> None:
    lens, elsewhere = demo()
    how = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False}
    asked = Experiment(TEXTS, interventions=edits, generate=how, returns=())
    found, expected = elsewhere.run(asked), lens.run(asked)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.text == expected.text


def test_generation_that_ends_early_gives_its_ids() -> None:
    lens, elsewhere = demo()
    text = TEXTS[0]
    following = lens.generate(text, 3, do_sample=False, verbose=False, stop_at_eos=False)
    end = int(lens.to_tokens(following)[0, -2])
    how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": end}
    asked = Experiment(text, interventions=[Scale(("z", 1), 1.01)], generate=how)
    found, expected = elsewhere.run(asked), lens.run(asked)
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.tokens.shape[1] < lens.to_tokens(text).shape[1] + 8


# --- single runs ---------------------------------------------------------------------------------


def test_a_function_of_torch_alone_becomes_part_of_the_trace() -> None:
    lens, elsewhere = pair("gpt2")

    def edit(z: Tensor, hook: Any) -> Tensor:
        z[:, 2:] *= 0.5
        return torch.where(z > 0, z, z.mean(dim=-1, keepdim=True))

    hooks = [(("z", 1), edit), ("blocks.0.ln2.hook_scale", lambda value, hook: value * 2)]
    with torch.no_grad():
        expected = lens.run_with_hooks(IDS, hooks)
    assert close(elsewhere.run_with_hooks(IDS, hooks), expected)


def test_a_function_that_asks_for_values_is_refused() -> None:
    _, elsewhere = pair("gpt2")

    def ask(z: Tensor, hook: Any) -> Tensor:
        return z * 2 if bool(z.max() > 1) else z

    with pytest.raises(UnsupportedError, match=r"hook_z.*depends on values"):
        elsewhere.run_with_hooks(IDS, [(("z", 1), ask)])


def test_methods_give_what_those_of_a_lens_give() -> None:
    lens, elsewhere = demo()
    metric = LogitDiff(" Paris", " Rome")
    cells = [Zero(("attn_out", layer)) for layer in range(4)]
    swept, expected = elsewhere.sweep(TEXTS[0], cells, metric), lens.sweep(TEXTS[0], cells, metric)
    assert close(swept.values, expected.values, 1e-5)
    value, grads = elsewhere.gradients(TEXTS[0], "resid_pre", metric)
    wanted, theirs = lens.gradients(TEXTS[0], "resid_pre", metric)
    assert close(value, wanted)
    assert all(close(grads[name], theirs[name], 1e-5) for name in theirs)
    new = elsewhere.generate(TEXTS[0], 2, do_sample=False)
    assert new == lens.generate(TEXTS[0], 2, do_sample=False, verbose=False)
    assert "demo" in repr(elsewhere)


# --- what is refused -----------------------------------------------------------------------------


def test_what_a_trace_cannot_have_is_refused_before_anything_runs() -> None:
    _, elsewhere = demo()

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model ran")

    handle = elsewhere.model._module.register_forward_pre_hook(never)
    try:
        for generate, word in (
            ({"num_beams": 2}, "beams"),
            ({"freq_penalty": 1.0}, "freq_penalty"),
            ({"num_return_sequences": 2, "do_sample": True}, "several texts"),
        ):
            with pytest.raises(UnsupportedError, match=word):
                elsewhere.run(Experiment(TEXTS[0], generate={"max_new_tokens": 2, **generate}))
        with pytest.raises(UnsupportedError, match="stop_at_layer"):
            elsewhere.run_with_cache(TEXTS[0], "z", stop_at_layer=1)
        with pytest.raises(lensbridge.errors.InputError, match="takes an Experiment"):
            elsewhere.run(TEXTS[0])  # type: ignore[arg-type]
        with pytest.raises(lensbridge.errors.UnknownPointError):
            elsewhere.run_with_cache(TEXTS[0], "hook_nothing")
        with pytest.raises(lensbridge.errors.InputError, match="range"):
            elsewhere.run_with_interventions(TEXTS[0], Zero(("z", 1), positions=40))
    finally:
        handle.remove()


def test_an_edit_in_place_is_not_sent_to_a_server_that_may_hand_out_copies() -> None:
    lens, elsewhere = pair("llama")
    away = NNsight(elsewhere.model, remote=True)
    edit = Scale(("resid_mid", 1), 2.0)
    expected = lens.run_with_interventions(IDS, edit)
    assert torch.equal(elsewhere.run_with_interventions(IDS, edit), expected)
    with pytest.raises(UnsupportedError, match=r"blocks.1.hook_resid_mid can be read.*copy"):
        away.code(Experiment(IDS, interventions=[edit]))
    assert "remote=remote" in away.code(Experiment(IDS, points=["resid_mid"]))
    for needs in (
        Experiment(IDS, points=[("result", 1)]),
        Experiment(IDS, interventions=[Scale("blocks.1.ln1.hook_scale", 2.0)]),
    ):
        with pytest.raises(UnsupportedError, match=r"(hook_result|hook_scale): .*weights"):
            away.code(needs)
    gradient = Experiment(IDS, metric=Loss(), gradients=["resid_pre"])
    with pytest.raises(UnsupportedError, match="Gradients cannot be had"):
        away.run(gradient)
    trusted = NNsight(elsewhere.model, remote=True, trusted=True)
    for one in (gradient, Experiment(IDS, interventions=[edit])):
        assert "model.trace(" in trusted.code(one)


def test_logits_that_a_model_caps_are_edited_in_its_output() -> None:
    lens, elsewhere = pair("gemma2")
    edits = [Add("hook_logits", 1.0, neurons=[3], positions="last"), Scale(("mlp_out", 0), 0.5)]
    expected = lens.run_with_interventions(IDS, edits)
    assert torch.equal(elsewhere.run_with_interventions(IDS, edits), expected)
    bare = lens.run_with_interventions(IDS, edits[1:])
    assert not torch.equal(expected, bare)


# --- what is sent --------------------------------------------------------------------------------

SERVER = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lensbridge", "lensbridge_adapters"):
            raise ImportError(f"the server has no {name}")


sys.meta_path.insert(0, Missing())
folder, *pairs = sys.argv[1:]
import torch
import transformers
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.tracer import dec, inc

try:
    import lensbridge
except ImportError:
    pass
else:
    raise SystemExit("lensbridge can be imported")
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = TransformersModel(folder, task="text-generation", tokenizer=tokenizer, dispatch=True)
for request, answer in zip(pairs[::2], pairs[1::2]):
    with open(request, "rb") as file:
        tracer = RequestModel.deserialize(file.read(), model._remoteable_persistent_objects())
    inc()
    tracer.execute(tracer.info.code)
    saved = tracer.info.frame.f_locals
    torch.save({name: saved[name] for name in ("result", "results") if name in saved}, answer)
    dec()
assert not any(name.startswith("lensbridge") for name in sys.modules)
"""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is serialised as for a server."""
    from nnsight.intervention.backends.local import LocalSimulationBackend
    from nnsight.schema.request import RequestModel

    sent: list[bytes] = []
    native = LocalSimulationBackend.__call__

    def keep(self: Any, tracer: Any) -> Any:
        sent.append(RequestModel.serialize(tracer))
        return native(self, tracer)

    monkeypatch.setattr(LocalSimulationBackend, "__call__", keep)
    return sent


def test_a_process_without_lensbridge_runs_what_is_sent(
    requests: list[bytes], tmp_path: Path
) -> None:
    lens, folder = demo()[0], tmp_path / "model"
    lens.hf_model.save_pretrained(folder)
    lens.tokenizer.save_pretrained(folder)
    elsewhere = NNsight(str(folder), remote="local")
    measured = {"prob": Prob(" Paris"), "divergence": KL()}
    asked = [
        replace(everything(), metric=measured, gradients=("resid_pre", "blocks.1.ln1.hook_scale")),
        Experiment(TEXTS, interventions=[Scale(("result", 1), 2.0, heads=1)]),
        Experiment(
            TEXTS,
            interventions=[Add(("mlp_out", 1), 0.1, when="decode")],
            generate={"max_new_tokens": 3, "do_sample": False},
        ),
    ]
    here = [elsewhere.run(one) for one in asked]
    assert len(requests) == len(asked)
    assert not any(b"lensbridge" in one for one in requests)
    answers = answers_of(folder, requests)
    for answer, expected in zip(answers, here, strict=True):
        wanted = expected.logits if expected.tokens is None else expected.tokens
        assert any(one.shape == wanted.shape and torch.equal(one, wanted) for one in answer)
    for grad in here[0].gradients["prob"].values():
        assert any(torch.equal(one, grad) for one in answers[0] if one.shape == grad.shape)


def answers_of(folder: Path, requests: list[bytes]) -> list[list[Tensor]]:
    """The values that come back for each request from a process without lensbridge."""
    pairs = []
    for i, request in enumerate(requests):
        pairs += [folder / f"request{i}", folder / f"answer{i}"]
        pairs[-2].write_bytes(request)
    command = [sys.executable, "-c", SERVER, str(folder), *map(str, pairs)]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr
    told = [torch.load(path, weights_only=False) for path in pairs[1::2]]
    given = [one["results"] if "results" in one else [one["result"]] for one in told]
    return [[value for one in each for value in one.values()] for each in given]


def test_weights_are_not_loaded_to_write_a_trace(tmp_path: Path) -> None:
    lens, _ = demo()
    lens.hf_model.save_pretrained(tmp_path)
    lens.tokenizer.save_pretrained(tmp_path)
    elsewhere = NNsight(str(tmp_path), remote="local")
    code = elsewhere.code(Experiment(TEXTS[0], interventions=[Zero(("z", 1), heads=3)]))
    assert "model.transformer.h[1].attn.c_proj.input = " in code
    assert "lensbridge" not in code
    assert all(one.is_meta for one in elsewhere.model._module.parameters())
    expected = lens.run_with_interventions(TEXTS[0], [Zero(("z", 1), heads=3)])
    found = elsewhere.run_with_interventions(TEXTS[0], [Zero(("z", 1), heads=3)])
    assert torch.equal(found, expected)


def test_cells_that_differ_in_constants_are_one_loop() -> None:
    _, elsewhere = demo()
    cells = [Zero(("z", layer), heads=head) for layer in range(2) for head in range(4)]
    code = elsewhere.code(Experiment(TEXTS[0], sweep=cells, metric=LogitDiff(" Paris", " Rome")))
    assert code.count("with model.trace(") == 3  # the run without cells, and one for each layer


def test_the_page_about_ndif_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    printed = ""
    for block in Page(ROOT / "docs" / "how-to" / "ndif.md").blocks:
        if block.kind == "text":
            assert printed == block.code
        elif block.kind == "python" and block.needs == "nnsight":
            exec(block.compiled(), names)
            printed = capsys.readouterr().out
            assert not block.printed or printed.splitlines() == block.printed


def test_traces_that_ran_leave_nothing_behind() -> None:
    import linecache

    from nnsight.tracing.globals import BLOCKS, SOURCES

    lens, elsewhere = pair("gpt2")
    before = len(BLOCKS), len(SOURCES), len(linecache.cache)
    for layer in (0, 1, 0):
        edit = Zero(("mlp_out", layer))
        found = elsewhere.run_with_interventions(IDS, edit)
        assert torch.equal(found, lens.run_with_interventions(IDS, edit))
    assert (len(BLOCKS), len(SOURCES), len(linecache.cache)) == before

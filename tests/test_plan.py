"""Plans: what a run will keep, held against what the run keeps, tensor by tensor."""

from typing import Any

import pytest
import torch
from described import of_class
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import IDS, TINY, model_of, require_as_told
from saes import Plain
from tiny_models import Shape, build, tokens
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

import lensbridge
from benchmarks.memory import peak_allocated
from lensbridge import LensModel
from lensbridge.errors import ContextLengthError, InputError, UnknownPointError

pytestmark = pytest.mark.usefixtures("one_thread")

DECODER = {"decoder_input_ids": tokens(2, 5, seed=1)}
ENCODERS = ("T5ForConditionalGeneration",)
LABELS = {
    "T5ForConditionalGeneration": {"labels": DECODER["decoder_input_ids"]},
    "BertForMaskedLM": {"labels": IDS},
}
MORE = ("Gemma2ForCausalLM", "DeepseekV2ForCausalLM", "MambaForCausalLM", "FalconH1ForCausalLM")
MODELS = (*TINY, "MixtralForCausalLM", *ENCODERS, "BertForMaskedLM")


@st.composite
def filters(draw: st.DrawFn, model: LensModel) -> list[str]:
    """Some points; those inside experts depend on where the router sends tokens."""
    names = [name for name in model.hook_names if ".experts." not in name]
    return draw(st.lists(st.sampled_from(names), min_size=1, max_size=12, unique=True))


HOW = st.fixed_dictionaries(
    {},
    optional={
        "pos_slice": st.sampled_from([-1, 2, slice(1, 4)]),
        "dtype": st.sampled_from([torch.bfloat16, "float64"]),
        "incl_bwd": st.just(True),
        "detach": st.just(False),
    },
)


DRAW = settings(deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("name", MODELS)
@settings(DRAW, max_examples=2)
@given(data=st.data())
def test_a_plan_is_what_a_run_keeps(name: str, data: st.DataObject) -> None:
    require_exact(name, data)


@pytest.mark.matrix
@pytest.mark.parametrize("name", [*MODELS, *MORE])
@settings(DRAW, max_examples=20)
@given(data=st.data())
def test_many_plans_are_what_runs_keep(name: str, data: st.DataObject) -> None:
    require_exact(name, data)


def require_exact(name: str, data: st.DataObject) -> None:
    """A random plan of a model, and the run that it is of."""
    model = model_of(name)
    how = data.draw(HOW)
    more: dict[str, Any] = DECODER if name in ENCODERS else {}
    if how.get("incl_bwd"):
        how["return_type"] = "loss"
        labels = {
            "T5ForConditionalGeneration": DECODER["decoder_input_ids"],
            "BertForMaskedLM": IDS,
        }
        more = {**more, **({"labels": labels[name]} if name in labels else {})}
    asked = data.draw(filters(model))
    try:
        plan = model.plan(IDS, asked, **how, **more)
    except InputError:
        with pytest.raises(InputError, match="One run cannot give the gradients"):
            model.run_with_cache(IDS, asked, **how, **more)
        return
    _, kept = model.run_with_cache(IDS, asked, **how, **more)
    require_as_told(plan, dict(kept))


@pytest.mark.parametrize("name", MODELS)
def test_everything_is_planned_from_a_shape(name: str) -> None:
    model = model_of(name)
    more = DECODER if name in ENCODERS else {}
    shapes = {name: tuple(value.shape) for name, value in more.items()}
    require_as_told(model.plan((2, 9), **shapes), dict(model.run_with_cache(IDS, **more)[1]))


def test_a_decoder_gets_as_many_tokens_as_the_encoder() -> None:
    model = model_of(ENCODERS[0])
    found = model.plan((2, 9), "resid_post").values
    assert {value.shape[:2] for value in found.values()} == {(2, 9)}


@pytest.mark.parametrize("given", ["a text", ["a text", "a longer text of words"], [5, 6, 7]])
def test_texts_and_ids_are_planned(given: Any) -> None:
    model = lensbridge.load("demo")
    names = ["resid_post", "pattern", "hook_logits"]
    how: dict[str, Any] = {"pos_slice": -1}  # of each text, so that padding counts
    plan = model.plan(given, names, **how)
    require_as_told(plan, dict(model.run_with_cache(given, names, **how)[1]))


def test_insides_of_experts_are_planned_as_if_all_were_as_busy() -> None:
    model = model_of("MixtralForCausalLM")
    for last in ("in", "pre", "out"):
        asked = f"blocks.*.mlp.experts.*.hook_{last}"
        plan = model.plan(IDS, asked)
        _, kept = model.run_with_cache(IDS, asked)
        assert sum(plan.bytes.values()) == sum(one.nbytes for one in kept.values())
        rows = [value.shape[0] for value in plan.values.values()]
        assert max(rows) - min(rows) <= 1
        assert plan.assumes == ("tokens are spread evenly over the experts",)
    assert not model.plan(IDS, "router_logits").assumes


@pytest.mark.parametrize(
    ("name", "gradients"), [("gpt2", False), ("llama", True), ("MixtralForCausalLM", True)]
)
def test_the_peak_is_what_the_profiler_counts(name: str, gradients: bool) -> None:
    model, ids = model_of(name), tokens(4, 32)
    how = {"incl_bwd": gradients, "return_type": "loss" if gradients else "logits"}
    for asked in (["z", "pattern"], None):
        peak = sum(model.plan(ids, asked, **how).peak.values())
        found = peak_allocated(lambda asked=asked: model.run_with_cache(ids, asked, **how))
        assert peak == pytest.approx(found, rel=0.05), asked


def test_the_result_is_apart_from_the_cache() -> None:
    model = model_of("gpt2")
    logits = model(IDS)
    assert model.plan(IDS, "resid_post").result == logits.nbytes
    assert model.plan(IDS, "resid_post", return_type=None).result == 0
    assert model.plan(IDS, "hook_logits").result == 0  # the same tensor
    assert model.plan(IDS, "resid_post", return_type="loss").result == logits.element_size()


def test_what_points_share_counts_once() -> None:
    model = model_of("gpt2")
    one = 2 * 9 * model.cfg.d_model * 4
    both = [("resid_post", 0), ("resid_pre", 1)]
    plan = model.plan((2, 9), both)
    assert (plan.total, sum(plan.bytes.values())) == (one, 2 * one)
    assert model.plan((2, 9), both, dtype="float64").total == 4 * one  # each is converted
    assert model.plan((2, 9), ["q", "k", "v"]).total == model.cfg.n_layers * 3 * one
    assert model.plan((2, 9), "q").total == model.cfg.n_layers * one


def test_a_plan_does_not_touch_the_model() -> None:
    model = lensbridge.load(build(Shape("llama")))
    ran: list[Any] = []
    for module in model.hf_model.modules():
        module.register_forward_pre_hook(lambda *args: ran.append(args))
    model.add_hook("resid_post", lambda value, hook: ran.append(value), is_permanent=True)
    before = {name: (id(one), one.clone()) for name, one in state(model).items()}
    seed = torch.get_rng_state()
    model.plan(IDS)
    model.plan(IDS, "z", incl_bwd=True, return_type="loss")
    assert not ran
    assert torch.equal(torch.get_rng_state(), seed)
    after = state(model)
    assert list(after) == list(before)
    for name, (place, value) in before.items():
        assert id(after[name]) == place
        assert torch.equal(after[name], value)
        assert not isinstance(after[name], FakeTensor)
        assert after[name].grad is None
    assert model.run_with_cache(IDS, "z")[1]["z", 0].isfinite().all()
    assert ran


def state(model: LensModel) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.hf_model.named_buffers())}


def test_a_key_value_cache_is_planned_and_not_continued() -> None:
    model = model_of("llama")
    past = model.hf_model(IDS, use_cache=True).past_key_values
    more = {"past_key_values": past, "names_filter": ["pattern", "k"]}
    plan = model.plan(IDS[:, :3], **more)
    assert past.get_seq_length() == 9
    require_as_told(plan, dict(model.run_with_cache(IDS[:, :3], **more)[1]))


def test_spans_are_planned() -> None:
    model = model_of("gpt2")
    early: dict[str, Any] = {"names_filter": ("resid_post", 0), "stop_at_layer": 1}
    _, kept = model.run_with_cache(IDS, **early)
    require_as_told(model.plan((2, 9), **early), dict(kept))
    asked: dict[str, Any] = {"names_filter": ("resid_post", 1), "start_at_layer": 1}
    _, kept = model.run_with_cache(kept["resid_post", 0], **asked)
    require_as_told(model.plan((2, 9), **asked), dict(kept))


def test_a_model_without_weights_has_the_same_plan() -> None:
    config = build(Shape("llama")).config
    with torch.device("meta"):
        without = lensbridge.load(type(build(Shape("llama")))(config))
    for how in ({}, {"incl_bwd": True, "return_type": "loss"}):
        plan, wanted = without.plan((2, 9), **how), model_of("llama").plan((2, 9), **how)
        assert plan.bytes == wanted.bytes
        assert plan.by_device == wanted.by_device
        assert plan.peak == wanted.peak
    assert all(one.is_meta for one in without.parameters())
    assert plan.weights["meta"] == wanted.weights["cpu"]


def test_a_spliced_sae_is_in_the_plan() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    point = "blocks.1.hook_resid_pre"
    with model.saes({point: Plain(model.cfg.d_model)}):
        asked = ["*hook_sae_acts_post", "resid_post"]
        plan = model.plan(IDS, asked)
        require_as_told(plan, dict(model.run_with_cache(IDS, asked)[1]))
    assert plan.values[f"{point}.hook_sae_acts_post"].shape == (2, 9, 11)


def test_what_cannot_be_planned_is_refused_as_a_run_is() -> None:
    model = model_of("gpt2")
    with pytest.raises(UnknownPointError, match="no point"):
        model.plan((2, 9), "resid_pots")
    with pytest.raises(ContextLengthError, match="the context is 40"):
        model.plan((1, 41))
    with pytest.raises(InputError, match="scalar"):
        model.plan((1, 4), incl_bwd=True)
    with pytest.raises(InputError, match=r"\(batch, tokens\), each at least 1"):
        model.plan((0, 4))
    with pytest.raises(InputError, match="reads pixel_values"):
        of_class("ViTForImageClassification").plan((1, 4))


def test_a_plan_shows_itself() -> None:
    plan = model_of("gpt2").plan((2, 9), ["resid_post", "z"], incl_bwd=True, return_type="loss")
    text = str(plan)
    assert repr(plan) == text
    for name in ("blocks.{i}.hook_resid_post", "blocks.{i}.attn.hook_z_grad"):
        row = next(line.split() for line in text.splitlines() if line.startswith(f"{name} "))
        kind = next(one for one in plan.kinds if one.name == name)
        assert row[1:] == " ".join(kind.cells()[1:]).split()
        assert f">{name}</td>" in plan._repr_html_()
    assert sum(kind.bytes for kind in plan.kinds) == sum(plan.bytes.values())

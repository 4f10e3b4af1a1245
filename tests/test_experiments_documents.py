"""Experiments and their results in files and as bytes: what comes back is what was written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lensbridge
from lensbridge import Experiment
from lensbridge.errors import InputError, LensbridgeError
from lensbridge.experiments import (
    KL,
    ExperimentResult,
    Logit,
    LogitDiff,
    LogProb,
    Loss,
    Prob,
    Rank,
)
from lensbridge.interventions import Add, Noise, Project, Replace, Scale, Steer, Swap, When, Zero

TEXT = "The Eiffel Tower is in the city of"
TEXTS = [TEXT, "The Colosseum is in"]


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


# --- experiments ---------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
ids = st.lists(st.integers(0, 500), min_size=3, max_size=3)
points = st.one_of(
    st.sampled_from(
        ["z", "blocks.1.hook_resid_post", "*hook_q", ("resid_post", -1), ("mlp", 2, "x")]
    ),
)
filters = st.one_of(st.none(), points, st.lists(points, min_size=1, max_size=3))
positions = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.just("last"),
    st.lists(st.integers(-3, 3), min_size=1, max_size=3),
    st.builds(slice, st.none() | st.integers(0, 3), st.none() | st.integers(0, 9)),
)
tensors = st.integers(0, 99).flatmap(
    lambda seed: st.sampled_from([torch.float32, torch.bfloat16, torch.float64]).map(
        lambda dtype: torch.randn(4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    )
)
where = st.fixed_dictionaries(
    {},
    optional={
        "positions": positions,
        "heads": st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=1),
        "when": st.sampled_from(["prefill", "decode", "both", When("decode", steps=[0, 2])]),
        "count": st.sampled_from(["tokens", "columns"]),
    },
)
interventions = st.one_of(
    st.builds(lambda p, w: Zero(p, **w), points, where),
    st.builds(lambda p, v, w: Add(p, v, **w), points, tensors, where),
    st.builds(lambda p, v, w: Replace(p, v, **w), points, st.floats(allow_nan=False), where),
    st.builds(lambda p, v, w: Scale(p, v, **w), points, st.floats(-2, 2), where),
    st.builds(lambda p, v, w: Steer(p, v, 3.0, **w), points, tensors, where),
    st.builds(lambda p, s: Noise(p, 0.5, seed=s), points, st.integers(0, 9)),
    st.builds(lambda p: Swap(p), points),
    st.builds(lambda p, v: Project(p, v), points, tensors),
)
tokens = st.one_of(
    words, st.integers(0, 500), st.lists(words | st.integers(0, 500), min_size=1, max_size=3)
)
read = st.integers(-3, 3) | st.lists(st.integers(-3, 3), min_size=1, max_size=3)
reductions = st.sampled_from(["mean", "sum", "none"])
metrics = st.one_of(
    *(
        st.builds(lambda t, p, r, kind=kind: kind(t, p, reduce=r), tokens, read, reductions)
        for kind in (Logit, LogProb, Prob, Rank)
    ),
    st.builds(lambda a, b, p: LogitDiff(a, b, p), tokens, tokens, read),
    st.builds(lambda p, r: KL(position=p, reduce=r), read | st.none(), reductions),
    st.builds(lambda v: KL(v.expand(1, 2, 4)), tensors),
    st.builds(lambda r: Loss(reduce=r), reductions),
)
cells = st.lists(
    interventions | st.lists(interventions, min_size=1, max_size=2), min_size=1, max_size=3
)
inputs = st.one_of(
    words,
    st.lists(words, min_size=1, max_size=3),
    ids,
    st.lists(ids, min_size=1, max_size=2),
    st.lists(ids, min_size=1, max_size=2).map(torch.tensor),
    st.lists(ids, min_size=1, max_size=2).map(
        lambda rows: {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(len(rows), 3)}
    ),
    st.builds(lambda text: [{"role": "user", "content": text}], words),
    tensors.map(lambda one: one.reshape(1, 2, 2)),
)


@st.composite
def experiments(draw: Any) -> Experiment:
    measured = draw(st.booleans())
    named = st.dictionaries(words, metrics, min_size=1, max_size=2)
    return Experiment(
        draw(inputs),
        points=draw(filters),
        interventions=draw(st.lists(interventions, max_size=3)),
        metric=draw(metrics | named) if measured else None,
        sweep=draw(st.none() | cells | st.dictionaries(words, interventions, min_size=1))
        if measured
        else None,
        gradients=draw(filters) if measured else None,
        generate=draw(st.none() | st.just({"max_new_tokens": 3, "temperature": 0.5})),
        pos_slice=draw(positions),
        returns=draw(st.lists(st.sampled_from(["logits", "loss"]), unique=True)),
        prepend_bos=draw(st.none() | st.booleans()),
    )


@settings(max_examples=60)
@given(experiments())
def test_an_experiment_comes_back_from_json(tmp_path_factory: Any, asked: Experiment) -> None:
    again = Experiment.from_json(asked.to_json())
    assert again == asked
    assert hash(again) == hash(asked)
    same(vars(again), vars(asked))
    file = tmp_path_factory.mktemp("tensors") / "tensors.safetensors"
    text = asked.to_json(file)
    assert "base64" not in text
    assert Experiment.from_json(text, file) == asked


def same(found: Any, wanted: Any) -> None:
    """Whether two fields are equal in value and type, tensors bit for bit, without `__eq__`."""
    assert type(found) is type(wanted)
    if isinstance(found, Tensor):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    elif isinstance(found, dict):
        assert list(found) == list(wanted)
        for name in found:
            same(found[name], wanted[name])
    elif isinstance(found, list | tuple):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            same(*pair)
    elif hasattr(found, "__dataclass_fields__"):
        same(vars(found), vars(wanted))
    else:
        assert found == wanted


def test_experiments_that_differ_are_not_equal() -> None:
    given = [
        Experiment(TEXT),
        Experiment(TEXTS),
        Experiment(TEXT, points="z"),
        Experiment(TEXT, metric=Logit(3)),
        Experiment(TEXT, metric=Logit(3, 0)),
        Experiment(TEXT, interventions=Add("z", torch.zeros(4))),
        Experiment(TEXT, interventions=Add("z", torch.ones(4))),
    ]
    assert len(set(given)) == len(given)
    assert Experiment(TEXT) != TEXT


def test_json_that_a_person_writes() -> None:
    text = """{
        "format": "lensbridge.experiment/1",
        "inputs": "The Eiffel Tower is in the city of",
        "points": [["resid_post", 3], "pattern"],
        "interventions": [{"kind": "Zero", "site": ["z", 1], "heads": [3]}],
        "metric": {"kind": "LogitDiff", "correct": " Paris", "wrong": " Rome"},
        "sweep": [{"kind": "Zero", "site": ["z", 0]},
                  [{"kind": "Zero", "site": ["z", 0]}, {"kind": "Zero", "site": ["z", 1]}]],
        "generate": {"max_new_tokens": 2, "do_sample": false}
    }"""
    assert Experiment.from_json(text) == Experiment(
        TEXT,
        points=[("resid_post", 3), "pattern"],
        interventions=Zero(("z", 1), heads=3),
        metric=LogitDiff(" Paris", " Rome"),
        sweep=[Zero(("z", 0)), [Zero(("z", 0)), Zero(("z", 1))]],
        generate={"max_new_tokens": 2, "do_sample": False},
    )


def test_the_loss_may_be_written_as_a_word() -> None:
    text = json.dumps({**HEAD, "inputs": TEXT, "metric": "loss"})
    assert Experiment.from_json(text) == Experiment(TEXT, metric="loss")
    assert Experiment(TEXT, metric="loss") == Experiment(TEXT, metric=Loss())
    text = json.dumps({**HEAD, "inputs": TEXT, "metric": {"a": "loss"}})
    assert Experiment.from_json(text) == Experiment(TEXT, metric={"a": Loss()})
    with pytest.raises(InputError, match="'los' is no declared metric"):
        Experiment(TEXT, metric="los")


HEAD = {"format": "lensbridge.experiment/1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no experiment"),
        ('{"format": "lensbridge.interventions/1"}', "no experiment"),
        (json.dumps(HEAD), "has no inputs"),
        (json.dumps({**HEAD, "inputs": "a", "point": "z"}), "no 'point'. Did you mean 'points'"),
        (json.dumps({**HEAD, "inputs": "a", "metric": {"kind": "Ratio"}}), "no metric 'Ratio'"),
        (json.dumps({**HEAD, "inputs": "a", "metric": {"kind": "Logit"}}), "cannot be read"),
        (
            json.dumps({**HEAD, "inputs": "a", "metric": {"kind": "Logit", "tok": 1}}),
            "Logit has no tok",
        ),
        (json.dumps({**HEAD, "inputs": "a", "metric": 3}), "The metric of the experiment"),
        (json.dumps({**HEAD, "inputs": "a", "sweep": 3}), "The sweep of the experiment"),
        (json.dumps({**HEAD, "inputs": "a", "interventions": [3]}), "The interventions of"),
        (json.dumps({**HEAD, "inputs": {"tensor": {"dtype": "x"}}}), "The inputs of the"),
        (json.dumps({**HEAD, "inputs": {"tensor": "0"}}), "pass it as tensors="),
        (json.dumps({**HEAD, "inputs": None}), "cannot be run or read"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_wrong_json_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Experiment.from_json(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = [
    "inputs",
    "points",
    "interventions",
    "metric",
    "sweep",
    "gradients",
    "pos_slice",
    "returns",
]


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(NAMES), values))
def test_no_json_raises_anything_but_an_error_of_lensbridge(fields: dict[str, Any]) -> None:
    text = json.dumps({**HEAD, "inputs": "a", **fields})
    try:
        found = Experiment.from_json(text)
    except LensbridgeError:
        return
    assert Experiment.from_json(found.to_json()) == found


# --- results -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(model: Any) -> ExperimentResult:
    return model.run(
        Experiment(
            TEXTS,
            points=["*"],
            interventions=[Zero(("z", 1), heads=3)],
            metric={"a/b": LogitDiff(" Paris", " Rome"), "loss": Loss()},
            sweep={"0/x": Zero(("z", 0)), "1": Zero(("z", 1))},
            gradients=["resid_pre", "q"],
            generate={"max_new_tokens": 2, "do_sample": False},
            returns=("logits", "loss"),
        )
    )


def same_results(found: ExperimentResult, wanted: ExperimentResult) -> None:
    assert (found.text, found.engine, list(found.metrics)) == (
        wanted.text,
        wanted.engine,
        list(wanted.metrics),
    )
    for name in ("logits", "loss", "tokens"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    for name, value in wanted.metrics.items():
        assert torch.equal(found.metrics[name], value)
    same_caches(found.cache, wanted.cache)
    for name, cache in wanted.gradients.items():
        same_caches(found.gradients[name], cache)
    assert torch.equal(found.sweep.values, wanted.sweep.values)
    assert torch.equal(found.sweep.baseline, wanted.sweep.baseline)
    assert found.sweep.grid == wanted.sweep.grid
    assert found.sweep.axis_labels == wanted.sweep.axis_labels
    assert repr(found.sweep) == repr(wanted.sweep)


def same_caches(found: Any, wanted: Any) -> None:
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.attention_mask, wanted.attention_mask)
    assert found.prepend_bos == wanted.prepend_bos


def test_a_result_comes_back_from_a_file_and_from_bytes(
    model: Any, result: ExperimentResult, tmp_path: Path
) -> None:
    result.save(tmp_path / "result.safetensors")
    for found in (
        ExperimentResult.load(tmp_path / "result.safetensors", model),
        ExperimentResult.from_bytes(result.to_bytes(), model),
        ExperimentResult.from_bytes(result.to_bytes()),
    ):
        same_results(found, result)
    loaded = ExperimentResult.load(tmp_path / "result.safetensors", model)
    stack, _ = loaded.cache.decompose_resid(return_labels=True)
    assert stack.shape[1:3] == result.logits.shape[:2]
    assert torch.equal(
        loaded.cache.last_token("resid_post", -1), result.cache.last_token("resid_post", -1)
    )


def test_a_small_result_and_other_dtypes(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        logits = torch.randn(1, 2, 3).to(dtype)
        kept = ExperimentResult(logits=logits, metrics={"metric": logits[0, 0, 0]}, engine="x")
        found = ExperimentResult.from_bytes(kept.to_bytes())
        assert found.logits.dtype == dtype
        assert torch.equal(found.logits, logits)
        assert torch.equal(found.metric, logits[0, 0, 0])
        assert (found.cache, found.sweep, found.text, found.engine) == (None, None, None, "x")
    assert ExperimentResult.from_bytes(ExperimentResult().to_bytes()).logits is None


def test_parts_of_one_tensor_are_written_each() -> None:
    whole = torch.randn(3, 4, 5)
    kept = ExperimentResult(logits=whole[1:2], loss=whole[0, 0, 0], tokens=whole[2].T)
    found = ExperimentResult.from_bytes(kept.to_bytes())
    assert torch.equal(found.logits, whole[1:2])
    assert torch.equal(found.loss, whole[0, 0, 0])
    assert torch.equal(found.tokens, whole[2].T)
    assert len(kept.to_bytes()) < 1_000 + whole.nbytes


def test_shared_memory_is_written_once_in_a_cache(model: Any) -> None:
    whole = model.run(Experiment(TEXT, points=["resid_pre", "resid_post"], returns=()))
    pre = model.run(Experiment(TEXT, points=["resid_pre"], returns=()))
    header = 8_000
    one = 9 * 128 * 4  # resid_post of a layer is resid_pre of the next one
    assert len(whole.to_bytes()) < len(pre.to_bytes()) + 2 * one + header


def test_wrong_bytes_and_files_say_what_is_wrong(result: ExperimentResult, tmp_path: Path) -> None:
    data = result.to_bytes()
    for wrong in (b"", b"x" * 50, data[:100], data[:-1]):
        with pytest.raises(InputError, match="cannot be read as safetensors"):
            ExperimentResult.from_bytes(wrong)
    result.cache.save(tmp_path / "cache.safetensors")
    with pytest.raises(InputError, match="no result of an experiment"):
        ExperimentResult.load(tmp_path / "cache.safetensors")
    with pytest.raises(InputError, match="There is no file"):
        ExperimentResult.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as a safetensors file"):
        ExperimentResult.load(tmp_path / "text")
    with pytest.raises(InputError, match="is a folder"):
        result.save(tmp_path)
    length = int.from_bytes(data[:8], "little")
    for old, new in ((b'\\"sweep\\"', b'\\"sweeq\\"'), (b'\\"names\\"', b'\\"namez\\"')):
        header = data[8 : 8 + length].replace(old, new)
        with pytest.raises(InputError, match="the header is incomplete"):
            ExperimentResult.from_bytes(data[:8] + header + data[8 + length :])


def test_a_result_of_another_model_is_refused(model: Any, result: ExperimentResult) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    other = lensbridge.load(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2)))
    with pytest.raises(InputError, match="This cache is of another model"):
        ExperimentResult.from_bytes(result.to_bytes(), other)

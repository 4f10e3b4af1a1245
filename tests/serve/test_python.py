"""The Python that each view shows is run as it stands, and gives the numbers of the view."""

from typing import Any

import pytest
import torch
from serve.site import EIFFEL, GALATA, Site, serving, whole, written
from test_tokens import letters
from tiny_models import Shape, build

import lensbridge
from lensbridge.model import LensModel

FULL = "a \"quoted\" prompt, 'twice'\nwith a line\tand \u202e signs \u00e9"


def did(program: str, model: LensModel | None = None) -> dict[str, Any]:
    """The names that a program leaves behind."""
    if model is not None:
        assert program.count("\nmodel = ...") == 1
        program = program.replace("\nmodel = ...", "\nmodel = MODEL")
    names: dict[str, Any] = {"__name__": "__main__", "MODEL": model}
    exec(compile(program, "the page", "exec"), names)
    return names


def near(found: Any, wanted: Any) -> bool:
    return torch.allclose(torch.tensor(found), torch.as_tensor(wanted).float(), atol=1e-4)


@pytest.fixture(scope="module", params=["demo", "letters", "ids"])
def place(request: pytest.FixtureRequest, site: Site) -> Any:
    """A page, the model of its Python, and two prompts of one length."""
    if request.param == "demo":
        yield site, None, EIFFEL, GALATA
        return
    tokenizer = letters() if request.param == "letters" else None
    shape = Shape("llama", heads=4, kv_heads=2, layers=3)
    model = lensbridge.load(build(shape), tokenizer=tokenizer)
    prompts = ("a cat, or", "a dog, or") if tokenizer else ("5, 6 7 8", "5 9 7 8")
    with serving(model) as found:
        yield found, model, *prompts


@pytest.mark.parametrize("position", [None, 1])
def test_predictions(place: Any, position: int | None) -> None:
    site, model, prompt, _ = place
    found = site.ask("predictions", prompt=prompt, position=position)
    names = did(found["python"], model)
    assert names["top"].indices.tolist() == [row["id"] for row in found["rows"]]
    assert near([row["probability"] for row in found["rows"]], names["top"].values)
    assert names["position"] == found["position"]
    assert near(found["expected"], names["expected"])
    assert len(found["expected"]) == len(found["tokens"]) - 1


@pytest.mark.parametrize("middle", [False, True])
def test_lens(place: Any, middle: bool) -> None:
    site, model, prompt, _ = place
    found = site.ask("lens", prompt=prompt, middle=middle)
    names = did(found["python"], model)
    assert names["tokens"].tolist() == found["ids"]
    assert near(found["probabilities"], names["probabilities"])
    assert len(names["lens"].labels) == len(found["rows"])


def test_attention(place: Any) -> None:
    site, model, prompt, _ = place
    found = site.ask("attention", prompt=prompt, layer=2, head=3)
    assert near(found["pattern"], did(found["python"], model)["pattern"])


def test_neurons(place: Any) -> None:
    site, model, prompt, _ = place
    found = site.ask("neurons", prompt=prompt, layer=1, neuron=7, k=3)
    names = did(found["python"], model)
    assert near(found["activations"], names["activations"][:, names["neuron"]])
    top = [row["neuron"] for row in found["top"]]
    assert names["activations"][names["position"]].abs().topk(3).indices.tolist() == top


@pytest.mark.parametrize("unit", ["component", "head", "layer"])
@pytest.mark.parametrize("against", [None, 12])
def test_attribution(place: Any, unit: str, against: int | None) -> None:
    site, model, prompt, _ = place
    found = site.ask("attribution", prompt=prompt, position=2, unit=unit, against=against)
    names = did(found["python"], model)
    assert near([row["value"] for row in found["rows"]], names["parts"].attribution[:, 0])
    assert near(found["bias"], names["parts"].bias[0])
    assert near(found["logit"], names["parts"].logit[0])


EDITS: list[list[dict[str, Any]]] = [
    [{"part": "head", "layer": 1, "index": 2, "position": 1}],
    [{"part": "mlp", "layer": 0, "action": "scale", "factor": -1.5}],
    [{"part": "neuron", "layer": 2, "index": 7}, {"part": "attn", "layer": 1, "action": "mean"}],
    [{"part": "stream", "layer": 1, "position": 2, "action": "patch", "source_position": 1}],
    [
        {"part": "head", "layer": 2, "index": 1, "action": "patch"},
        {"part": "mlp", "layer": 1, "action": "patch", "position": 3},
        {"part": "stream", "layer": 0, "position": 1, "action": "mean"},
    ],
]


@pytest.mark.parametrize("edits", EDITS)
def test_edits(place: Any, edits: list[dict[str, Any]]) -> None:
    site, model, prompt, other = place
    edits = [{**one, "source": other} if one.get("action") == "patch" else one for one in edits]
    found = site.ask("edits", prompt=prompt, edits=edits)
    names = did(found["python"], model)
    told = [row["id"] for row in found["rows"]]
    assert near([row["logit"][0] for row in found["rows"]], names["before"][told])
    assert near([row["logit"][1] for row in found["rows"]], names["after"][told])
    assert not near([row["logit"][0] for row in found["rows"]], names["after"][told])


def test_ablation(place: Any) -> None:
    site, model, prompt, _ = place
    events = site.events("ablation", prompt=prompt)
    names = did(events[0]["python"], model)
    columns = [one.get("index", f"{one['part']}_out") for one in events[0]["columns"]]
    cells = [(layer, columns[column]) for layer, column in events[0]["cells"]]
    assert names["places"] == cells
    assert near(whole(events), names["effect"])


@pytest.mark.parametrize("what", ["resid_pre", "attn_out", "mlp_out", "z"])
def test_comparison(place: Any, what: str) -> None:
    site, model, prompt, other = place
    answers = {} if model is None else {"answer": 6, "wrong": 9}
    events = site.events("comparison", clean=prompt, corrupted=other, what=what, **answers)
    recovered = did(events[0]["python"], model)["recovered"]
    wanted = [float(recovered[layer, i]) for layer, i in events[0]["cells"]]
    assert whole(events) == pytest.approx(wanted, abs=1e-3)
    assert recovered.numel() == len(wanted)


def test_steering(place: Any) -> None:
    site, model, prompt, other = place
    question = {"positive": other, "negative": prompt, "layer": 1, "strength": 2.5}
    events = site.events("steering", prompt=prompt, new_tokens=9, **question)
    names = did(events[0]["python"], model)
    told = [row["id"] for row in events[0]["rows"]]
    assert near([row["logit"][0] for row in events[0]["rows"]], names["before"][told])
    assert near([row["logit"][1] for row in events[0]["rows"]], names["after"][told])
    start = len(events[0]["tokens"])
    counts = [names[side].shape[1] - start for side in ("plain", "steered")]
    assert [len(labels) for labels in written(events).values()] == counts


def test_a_prompt_with_signs_that_cannot_be_seen_is_written_with_escapes(site: Site) -> None:
    found = site.ask("predictions", prompt=FULL)
    assert found["python"].isascii() or "\u202e" not in found["python"]
    assert did(found["python"])["prompt"] == FULL
    assert not any("\u202e" in label or "\n" in label for label in found["tokens"])

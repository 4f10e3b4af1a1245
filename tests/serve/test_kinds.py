"""Models of other kinds: what the page says that they lack, and what it shows of them."""

from typing import Any

import httpx
import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from serve.site import Site, serving, whole
from test_tokens import letters

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.model import LensModel
from lensbridge.serve.views import VIEWS

OF_LOGITS = {"predictions", "lens", "attribution", "edits", "ablation", "comparison", "steering"}
QUESTIONS: dict[str, dict[str, Any]] = {
    "edits": {"edits": [{"part": "stream", "layer": 0, "position": 1}]},
    "steering": {"new_tokens": 2},
}


def tiny(name: str, tokenizer: Any = "letters") -> LensModel:
    description = next(one for one in lensbridge_architectures() if name in one.classes)
    hf: Any = tiny_model(description, name)
    return lensbridge.load(hf, tokenizer=letters() if tokenizer == "letters" else tokenizer)


def card(site: Site) -> dict[str, Any]:
    return httpx.get(f"{site.url}/api/model", headers=site.headers()).json()


def every_view(site: Site, prompt: str, other: str) -> dict[str, Any]:
    """Ask each view; those that the card says are absent must say the same."""
    absent, found = card(site)["absent"], {}
    for name, view in VIEWS.items():
        question = {"prompt": prompt, **QUESTIONS.get(name, {})}
        if name == "attention" and name not in absent:
            question["layer"] = card(site)["attention_layers"][0]
        if name == "neurons" and name not in absent:
            question["layer"] = card(site)["neuron_layers"][0]
        if name == "steering":
            question |= {"positive": other, "negative": prompt}
        if name == "comparison":
            question = {"clean": prompt, "corrupted": other, "answer": "5", "wrong": "6"}
        if name in absent:
            assert site.refusal(name, **question) == absent[name]
        elif view.streams:
            found[name] = site.events(name, **question)
        else:
            found[name] = site.ask(name, **question)
    return found


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_encoder_decoders_are_refused_with_what_to_do(name: str) -> None:
    with serving(tiny(name)) as site:
        absent = card(site)["absent"]
        assert set(absent) == set(VIEWS)
        assert "decoder_input_ids" in absent["lens"]
        assert every_view(site, "a cat", "a dog") == {}


def test_vision_models_are_refused() -> None:
    with serving(tiny("ViTForImageClassification", None)) as site:
        assert "reads pixel_values, not text" in card(site)["absent"]["predictions"]
        assert every_view(site, "1 2", "1 3") == {}


def test_an_encoder_predicts_tokens_in_their_place() -> None:
    model = tiny("BertForMaskedLM")
    with serving(model) as site:
        told = card(site)
        assert told["predicts_next"] is False
        assert set(told["absent"]) == {"attribution", "steering"}
        found = site.ask("predictions", prompt="a cat", position=3)
        with torch.no_grad():
            ids = model.to_tokens("a cat")
            logits = model.hf_model(ids).logits[0, 3]
        assert [row["id"] for row in found["rows"]] == logits.topk(12).indices.tolist()
        assert found["expected"] is None
        pattern = site.ask("attention", prompt="a cat", layer=1)["pattern"]
        assert all(weight > 0 for row in pattern for weight in row)
        site.ask("edits", prompt="a cat", **QUESTIONS["edits"])
        site.events("ablation", prompt="a cat")


def test_a_model_without_a_head_has_attention_and_neurons() -> None:
    with serving(tiny("GPT2Model")) as site:
        absent = card(site)["absent"]
        assert set(absent) == OF_LOGITS
        assert "no language-model head" in absent["predictions"]
        assert set(every_view(site, "a cat", "a dog")) == {"attention", "neurons"}


def test_a_classifier_has_no_tokens_to_predict() -> None:
    with serving(tiny("BertForSequenceClassification")) as site:
        assert set(card(site)["absent"]) == OF_LOGITS
        assert set(every_view(site, "a cat", "a dog")) == {"attention", "neurons"}


def test_a_state_space_model_has_no_attention() -> None:
    model = tiny("MambaForCausalLM", None)
    with serving(model) as site:
        absent = card(site)["absent"]
        assert "attention patterns" in absent["attention"]
        assert "neurons" in absent["neurons"]
        found = every_view(site, "5 6 7", "5 8 7")
        assert set(found) == set(VIEWS) - {"attention", "neurons"}
        assert [one["label"] for one in found["ablation"][0]["columns"]] == ["mixer"]
        events = site.events(
            "comparison", clean="5 6 7", corrupted="5 8 7", answer=5, wrong=6, what="mixer_out"
        )
        names: dict[str, Any] = {"MODEL": model}
        exec(events[0]["python"].replace("model = ...", "model = MODEL"), names)
        assert whole(events) == pytest.approx(names["recovered"].flatten().tolist(), abs=1e-3)
        logits = model.hf_model(torch.tensor([[5, 6, 7]])).logits[0, -1]
        assert found["predictions"]["rows"][0]["id"] == int(logits.argmax())


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "JambaForCausalLM", "Gemma2ForCausalLM"])
def test_mixtures_and_hybrids(name: str) -> None:
    model = tiny(name, None)
    with serving(model) as site:
        told = card(site)
        found = every_view(site, "5 6 7", "5 8 7")
        assert {"predictions", "lens", "attention", "edits", "ablation"} <= set(found)
        assert told["attention_layers"]


def test_without_a_tokenizer_prompts_are_ids_and_the_page_says_so() -> None:
    with serving(tiny("GPT2LMHeadModel", None)) as site:
        told = card(site)
        assert told["tokenizer"] is False
        found = site.ask("predictions", prompt=told["prompt"])
        assert found["tokens"][0] == "id 5"
        for wrong in ("a text", "1 -2", "1.5", "", "99999999999"):
            assert "token ids" in site.refusal("predictions", prompt=wrong) or not wrong
        assert "vocabulary" in site.refusal("predictions", prompt="999999")


def test_every_view_of_the_demo_model_is_there(site: Site) -> None:
    told = card(site)
    assert told["absent"] == {}
    assert (told["name"], told["layers"], told["heads"], told["context"]) == ("demo", 4, 4, 128)
    assert told["parameters"] == 881_920

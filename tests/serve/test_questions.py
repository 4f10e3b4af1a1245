"""Questions that are not answered, and what is said about them."""

import json
import math
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serve.site import EIFFEL, GALATA, Site, serving
from tiny_models import Shape, build

import lensbridge
from lensbridge.errors import InputError
from lensbridge.model import LensModel
from lensbridge.serve import Limits
from lensbridge.serve.views import VIEWS

HEAD = {"part": "head", "layer": 0, "index": 0}


@pytest.mark.parametrize(
    ("view", "question", "told"),
    [
        ("predictions", {"prompt": ""}, "The prompt is empty"),
        ("predictions", {}, "prompt: Field required"),
        ("predictions", {"prompt": 5}, "prompt: Input should be a valid string"),
        ("predictions", {"prompt": "a" * 20_001}, "at most 20000 characters"),
        ("predictions", {"prompt": EIFFEL, "position": 9}, "numbered 0 to 8"),
        ("predictions", {"prompt": EIFFEL, "position": -1}, "greater than or equal to 0"),
        ("predictions", {"prompt": EIFFEL, "position": 1.5}, "position: Input should be a valid"),
        ("predictions", {"prompt": EIFFEL, "position": "1"}, "position: Input should be a valid"),
        ("predictions", {"prompt": EIFFEL, "code": "1"}, "code: Extra inputs are not permitted"),
        ("predictions", {"prompt": EIFFEL, "k": 1000}, "less than or equal to 50"),
        ("predictions", {"prompt": "word " * 127}, "the context is 128"),
        ("attention", {"prompt": EIFFEL, "layer": 4}, "0 to 3"),
        ("attention", {"prompt": EIFFEL, "head": 4}, "numbered 0 to 3"),
        ("neurons", {"prompt": EIFFEL, "neuron": 512}, "numbered 0 to 511"),
        ("attribution", {"prompt": EIFFEL, "target": "Paris Rome"}, "tokens, not one"),
        ("attribution", {"prompt": EIFFEL, "target": 564}, "ids of this model are 0 to 563"),
        ("attribution", {"prompt": EIFFEL, "unit": "neuron"}, "'component', 'layer' or 'head'"),
        ("edits", {"prompt": EIFFEL, "edits": []}, "at least 1 item"),
        ("edits", {"prompt": EIFFEL, "edits": [HEAD] * 25}, "at most 24 items"),
        ("edits", {"prompt": EIFFEL, "edits": [{**HEAD, "index": None}]}, "number of the head"),
        ("edits", {"prompt": EIFFEL, "edits": [{**HEAD, "index": 4}]}, "head"),
        ("edits", {"prompt": EIFFEL, "edits": [{**HEAD, "part": "mlp"}]}, "no number"),
        ("edits", {"prompt": EIFFEL, "edits": [{**HEAD, "layer": 4}]}, "layer"),
        ("edits", {"prompt": EIFFEL, "edits": [{**HEAD, "position": 9}]}, "numbered 0 to 8"),
        ("edits", {"prompt": EIFFEL, "edits": [{**HEAD, "action": "patch"}]}, "second prompt"),
        ("comparison", {"clean": EIFFEL, "corrupted": "The Louvre"}, "same number of tokens"),
        ("comparison", {"clean": EIFFEL, "corrupted": EIFFEL}, "Both prompts are the same"),
        (
            "comparison",
            {"clean": EIFFEL, "corrupted": GALATA, "answer": "Rome", "wrong": "Rome"},
            "Name two tokens",
        ),
        ("steering", {"prompt": EIFFEL, "positive": "", "negative": "a"}, "The prompt is empty"),
        (
            "steering",
            {"prompt": EIFFEL, "positive": "a", "negative": "b", "new_tokens": 65},
            "64 tokens at most",
        ),
        (
            "steering",
            {"prompt": " a" * 100, "positive": "a", "negative": "b", "new_tokens": 30},
            "the context is 128",
        ),
        (
            "steering",
            {"prompt": EIFFEL, "positive": "a", "negative": "b", "layer": 7},
            "layer",
        ),
    ],
)
def test_what_is_wrong_is_told(site: Site, view: str, question: Any, told: str) -> None:
    message = site.refusal(view, **question)
    assert told in message
    assert len(message) < 1500


def test_a_word_is_found_with_and_without_its_space(site: Site) -> None:
    for typed, label in (("Paris", "·Paris"), (" Paris", "·Paris"), ("of", "·of")):
        found = site.ask("attribution", prompt=EIFFEL, target=typed)
        assert found["target"]["label"] == label


def test_numbers_that_json_does_not_have(site: Site) -> None:
    edit = '{"part": "mlp", "layer": 0, "action": "scale", "factor": %s}'
    for number in ("NaN", "Infinity", "1e999", "-1e999", "1001"):
        body = f'{{"prompt": "a", "edits": [{edit % number}]}}'
        headers = site.headers(**{"Content-Type": "application/json"})
        response = httpx.post(f"{site.url}/api/edits", content=body, headers=headers)
        assert response.status_code == 422
        assert "message" in response.json()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 9000]
)
def test_bodies_that_are_no_question(site: Site, body: bytes) -> None:
    headers = site.headers(**{"Content-Type": "application/json"})
    response = httpx.post(f"{site.url}/api/predictions", content=body, headers=headers)
    assert response.status_code == 422
    assert response.json()["message"]


def test_a_body_that_is_too_large(site: Site) -> None:
    headers = site.headers(**{"Content-Type": "application/json"})
    parts = iter([b'{"prompt": "'] + [b"a" * 30_000] * 4)
    for content in (b"a" * 70_000, parts):
        response = httpx.post(f"{site.url}/api/lens", content=content, headers=headers)
        assert response.status_code == 413
        assert "65536 bytes" in response.json()["message"]


def test_views_that_there_are_not(site: Site) -> None:
    assert "there are predictions, lens" in site.refusal("logits", 404, prompt=EIFFEL)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(data=st.data(), name=st.sampled_from(sorted(VIEWS)))
def test_whatever_is_asked_is_answered_or_explained(
    site: Site, data: st.DataObject, name: str
) -> None:
    """Never an error that nobody thought of (500)."""
    fields = VIEWS[name].question.model_fields
    texts = {"prompt", "clean", "corrupted", "positive", "negative", "source"}
    question = {
        field: data.draw(st.sampled_from([EIFFEL, GALATA, "a"]) if field in texts else json_like)
        for field in fields
        if field in texts or data.draw(st.booleans())
    }
    finite = httpx.Request("POST", site.url, content=as_json(question)).content
    headers = site.headers(**{"Content-Type": "application/json"})
    response = httpx.post(f"{site.url}/api/{name}", content=finite, headers=headers)
    assert response.status_code in (200, 422), response.text


def as_json(question: Any) -> bytes:
    return json.dumps(question).encode("utf-8", "surrogatepass")


def test_limits_of_the_page(model: LensModel) -> None:
    limits = Limits(max_tokens=9, max_cells=19, max_new_tokens=2)
    with serving(model, limits=limits) as site:
        assert site.ask("predictions", prompt=EIFFEL)["tokens"]
        assert "this page takes 9" in site.refusal("predictions", prompt=EIFFEL + " the")
        assert "20 cells" in site.refusal("ablation", prompt=EIFFEL)
        assert "36 cells" in site.refusal("comparison", clean=EIFFEL, corrupted=GALATA)
        question = {"prompt": "a", "positive": "a", "negative": "b", "new_tokens": 3}
        assert "2 tokens at most" in site.refusal("steering", **question)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "9"])
def test_limits_that_are_none(wrong: Any) -> None:
    with pytest.raises(InputError, match="max_tokens is a whole number"):
        Limits(max_tokens=wrong)


def test_numbers_that_are_not_finite_are_not_drawn() -> None:
    hf = build(Shape("gpt2"))
    with torch.no_grad():
        hf.lm_head.weight.fill_(math.nan)
    with serving(lensbridge.load(hf, tokenizer=None)) as site:
        told = site.refusal("predictions", prompt="5 6")
    assert "not finite" in told

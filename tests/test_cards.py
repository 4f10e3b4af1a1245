"""Cards of neurons and features: their numbers are those of the bare model, text by text."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from described import of_class
from hypothesis import given
from hypothesis import strategies as st
from pictures import ids, parsed, texts
from saes import Plain, Told
from tiny_models import FAMILIES, Shape, build, final_norm_of

import lensbridge
from lensbridge.analysis import neuron_card, tokenize_and_concatenate
from lensbridge.errors import AbsentPointError, HookError, InputError
from lensbridge.maxima.effects import logit_effects
from lensbridge.maxima.tally import Tally
from lensbridge.saes import feature_card
from lensbridge.viz import Card, CardText

TEXTS = [
    "The Eiffel Tower is in the city of Paris",
    "John and Mary went to the store. John gave a drink to Mary",
    "When Tom and Mary went to the store, Mary gave a book to Tom. Mary went to the store.",
    "Then",
    "The Colosseum is in the city of Rome. The Colosseum is in the city of Rome.",
]
LAYER, NEURON = 2, 17


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


def bare_values(model: Any, text: str, module: Any, pick: Any) -> torch.Tensor:
    """What a module returns for one text alone, without BOS, from the HuggingFace model itself."""
    seen = []
    handle = module.register_forward_hook(lambda module, args, out: seen.append(out))
    ids = model.tokenizer(text, return_tensors="pt").input_ids
    first = torch.tensor([[model.tokenizer.bos_token_id]])
    if ids[0, 0] != first[0, 0]:
        ids = torch.cat([first, ids], 1)
    with torch.no_grad():
        model.hf_model(ids)
    handle.remove()
    return pick(seen[0])[0]


@pytest.fixture(scope="module")
def neurons(model: Any) -> list[torch.Tensor]:
    act = model.hf_model.transformer.h[LAYER].mlp.act
    return [bare_values(model, text, act, lambda out: out[..., NEURON]) for text in TEXTS]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_largest_activations_are_those_of_the_bare_model(
    model: Any, neurons: list[torch.Tensor], batch_size: int
) -> None:
    card = neuron_card(model, LAYER, NEURON, iter(TEXTS), k=3, context=2, batch_size=batch_size)
    best = sorted(range(len(TEXTS)), key=lambda i: -float(neurons[i][1:].max()))[:3]
    assert [peak.text for peak in card.peaks] == best
    for peak, words in zip(card.peaks, card.tokens, strict=True):
        values = neurons[peak.text]
        place = int(values[1:].argmax()) + 1  # not BOS
        assert peak.position == place
        assert peak.value == pytest.approx(float(values[place]), abs=1e-5)
        around = slice(max(0, place - 2), place + 3)
        assert peak.values == pytest.approx(values[around].tolist(), abs=1e-5)
        assert list(words) == model.to_str_tokens(TEXTS[peak.text])[around]
        assert peak.values[peak.at] == peak.value


def test_density_and_histogram_count_every_token(model: Any, neurons: list[torch.Tensor]) -> None:
    card = neuron_card(model, LAYER, NEURON, TEXTS, batch_size=2)
    values = torch.cat([one[1:] for one in neurons]).double()
    assert (card.tally.count, card.texts) == (len(values), len(TEXTS))
    assert card.tally.density == float((values > 0).double().mean())
    assert card.tally.mean == pytest.approx(float(values.mean()), abs=1e-6)
    counts, edges = card.tally.histogram()
    assert counts == np.histogram(values.numpy(), edges)[0].tolist()
    assert sum(counts) == len(values)


@torch.no_grad()
def test_logit_effects_are_its_row_of_the_weight_through_the_head(model: Any) -> None:
    card = neuron_card(model, LAYER, NEURON, TEXTS, k=1, logits=5)
    core = model.hf_model
    row = core.transformer.h[LAYER].mlp.c_proj.weight[NEURON].double()
    read = (row - row.mean()) * core.transformer.ln_f.weight.double()
    scores = core.lm_head.weight.double() @ read
    values, top = scores.topk(5)
    words = [model.to_single_str_token(one) for one in top.tolist()]
    assert [token for token, _ in card.effects.promoted] == words
    assert [v for _, v in card.effects.promoted] == pytest.approx(values.tolist(), abs=1e-5)
    low = (-scores).topk(5).values
    assert [v for _, v in card.effects.suppressed] == pytest.approx((-low).tolist(), abs=1e-5)


def test_special_tokens_count_when_they_are_asked_for(model: Any, neurons: Any) -> None:
    card = neuron_card(model, LAYER, NEURON, TEXTS, exclude_special_tokens=False)
    assert card.tally.count == sum(map(len, neurons))
    assert max(peak.value for peak in card.peaks) == pytest.approx(
        max(float(one.max()) for one in neurons), abs=1e-5
    )


def test_texts_are_cut_and_rows_of_ids_are_taken(model: Any) -> None:
    assert neuron_card(model, 0, 0, TEXTS, max_tokens=4).tally.count == 3 * 4 + 1
    rows = tokenize_and_concatenate(TEXTS, model.tokenizer, max_length=8)
    by_rows = neuron_card(model, 0, 5, rows, batch_size=2)
    by_ids = neuron_card(model, 0, 5, rows["tokens"])
    assert by_rows.peaks == by_ids.peaks
    assert by_rows.texts == len(rows)
    assert neuron_card(model, 0, 5, TEXTS[0]).texts == 1


@torch.no_grad()
def test_features_are_those_of_the_sae_on_the_bare_model(model: Any) -> None:
    sae, block = Told("blocks.2.hook_resid_post", 128), model.hf_model.transformer.h[2]
    card = feature_card(model, sae, 3, TEXTS, k=2, batch_size=2)
    wanted = [
        bare_values(model, text, block, lambda out: sae.encode(out)[..., 3])[1:] for text in TEXTS
    ]
    best = sorted(range(len(TEXTS)), key=lambda i: -float(wanted[i].max()))[:2]
    assert [peak.text for peak in card.peaks] == best
    assert [peak.value for peak in card.peaks] == pytest.approx(
        [float(wanted[i].max()) for i in best], abs=1e-4
    )
    values = torch.cat(wanted)
    assert card.tally.density == float((values > 0).double().mean())
    counts, edges = card.tally.histogram(positive=True)
    assert sum(counts) == int((values > 0).sum())
    assert edges[0] >= 0
    core = model.hf_model
    row = sae.W_dec[3].double()
    scores = core.lm_head.weight.double() @ (
        (row - row.mean()) * core.transformer.ln_f.weight.double()
    )
    assert card.effects.promoted[0][1] == pytest.approx(scores.max().item(), abs=1e-4)
    assert not model.hf_model._forward_hooks


class Weightless(Plain):
    """An SAE whose decoder has a bias and another name."""

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)
        self.inner = self.__dict__.pop("W_dec")

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.inner + 5.0


def test_a_decoder_that_names_no_weight_is_asked_for_the_difference(model: Any) -> None:
    named, unnamed = (
        feature_card(model, sae, 3, TEXTS[:1], hook_name=("resid_post", 2))
        for sae in (Plain(128), Weightless(128))
    )
    for one, other in zip(named.effects.promoted, unnamed.effects.promoted, strict=True):
        assert one[0] == other[0]
        assert one[1] == pytest.approx(other[1], abs=1e-4)


def test_a_feature_of_another_width_has_no_logit_effects(model: Any) -> None:
    card = feature_card(model, Plain(512), 1, TEXTS[:2], hook_name=("post", 1))
    assert card.effects is None
    assert "promoted" not in "".join(texts(card.plot().svg()))


@given(st.lists(st.lists(st.floats(-1e5, 1e5), max_size=9), max_size=5), st.booleans())
def test_a_tally_counts_as_if_it_had_all_values(parts: list[list[float]], positive: bool) -> None:
    tally = Tally()
    for part in parts:
        tally.add(torch.tensor(part, dtype=torch.float64))
    values = np.array([value for part in parts for value in part])
    kept = values[values > 0] if positive else values
    counts, edges = tally.histogram(positive)
    assert sum(counts) == len(kept)
    assert len(edges) == len(counts) + 1
    assert len(counts) <= 48
    if len(kept):
        assert counts == np.histogram(kept, edges)[0].tolist()
        assert (tally.low, tally.high) == (values.min(), values.max())
    assert tally.active == (values > 0).sum()


def test_the_picture_shows_what_the_card_knows(model: Any, tmp_path: Path) -> None:
    card = neuron_card(model, LAYER, NEURON, TEXTS, k=3)
    picture = card.plot()
    root = ElementTree.fromstring(picture.fragment())
    shown = [
        "".join(block.itertext())
        for block in root.iter("div")
        if block.attrib.get("class") == "lb-text"
    ]
    assert shown == ["".join(words) for words in card.tokens]
    chosen = [one for one in root.iter("span") if one.attrib.get("data-chosen")]
    assert [one.text for one in chosen] == [
        words[peak.at] for words, peak in zip(card.tokens, card.peaks, strict=True)
    ]
    drawn = texts(picture.svg())
    for token, _ in card.effects.promoted:
        assert any(token.strip() in text for text in drawn)
    assert f"above 0 at {card.tally.density:.3%} of {card.tally.count} tokens in 5 texts" in drawn
    assert len(ids(picture.fragment())) == len(set(ids(picture.fragment())))
    assert not re.search("<script|src=", picture.html())
    assert parsed(picture.svg()) is not None
    for suffix in (".html", ".svg", ".png", ".pdf"):
        assert card.save(tmp_path / f"x{suffix}").stat().st_size > 1000
    assert "Neuron 17 of layer 2: largest" in repr(card)
    assert picture.fragment() in card._repr_html_()


def test_a_card_of_ones_own() -> None:
    card = Card("<b>", {"a": "1"}, [CardText(["x", "<i>"], [0.0, 2.0], 1, "here")])
    assert "&lt;b&gt;" in card.fragment()
    assert "<i>" not in card.fragment()
    assert card.png().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="2 edges for 2 intervals"):
        Card("", {}, [], [1, 2], [0.0, 1.0])


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_a_direction_in_the_final_stream(family: str) -> None:
    hf = build(Shape(family))
    norm, head = final_norm_of(hf, family), hf.get_output_embeddings()
    direction = torch.randn(hf.config.hidden_size)
    centred = direction - direction.mean() if isinstance(norm, torch.nn.LayerNorm) else direction
    wanted = head.weight @ (norm.weight * centred)
    found = logit_effects(lensbridge.load(hf), direction, 3)
    assert found is not None
    order = wanted.argsort(descending=True)
    assert [int(token) for token, _ in found.promoted] == order[:3].tolist()
    assert [int(token) for token, _ in found.suppressed] == order.flip(0)[:3].tolist()
    values = torch.tensor([value for _, value in (*found.promoted, *found.suppressed)])
    torch.testing.assert_close(
        values, wanted[torch.cat([order[:3], order.flip(0)[:3]])].detach(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"neuron": 512}, "no neuron 512: layer 0 has 512"),
        ({"texts": []}, "no tokens to count"),
        ({"texts": ["a", ""]}, "strings that are not empty"),
        ({"texts": [3]}, "strings that are not empty"),
        ({"texts": torch.zeros(3)}, r"are \[row, pos\], not \[3\]"),
        ({"k": 0}, "k=0 is too small"),
        ({"context": -1}, "context=-1 is too small"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"logits": 0}, "logits=0 is too small"),
    ],
)
def test_what_is_not_there_is_refused(model: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        neuron_card(model, **{"layer": 0, "neuron": 0, "texts": TEXTS[:1], **asked})


def test_other_features_and_points_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match="no feature 11: the SAE has 11"):
        feature_card(model, Told("blocks.2.hook_resid_post", 128), 11, TEXTS[:1])
    with pytest.raises(HookError, match="names no point"):
        feature_card(model, Plain(128), 0, TEXTS[:1])


def test_experts_have_no_neurons_of_the_layer() -> None:
    model = of_class("MixtralForCausalLM")
    with pytest.raises(AbsentPointError):
        neuron_card(model, 0, 0, torch.tensor([[1, 2, 3]]))


def test_a_model_without_a_tokenizer_shows_ids() -> None:
    model = of_class("LlamaForCausalLM")
    rows = torch.tensor([[5, 6, 7], [8, 9, 10]])
    card = neuron_card(model, 1, 3, rows)
    _, cache = model.run_with_cache(rows)
    values = cache["post", 1][..., 3]
    assert card.peaks[0].value == pytest.approx(float(values.max()), abs=1e-5)
    row, place = divmod(int(values.argmax()), 3)
    assert card.tokens[0][card.peaks[0].at] == str(int(rows[row, place]))

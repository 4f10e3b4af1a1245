"""Attention pictures: the numbers in the page are the model's, and every size of input is met."""

import base64
import json
import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from described import of_class
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pictures import MINUS, PLUS, channels, ids, marks, pixels
from PIL import Image
from transformers import AutoModelForCausalLM

import lensbridge
from lensbridge.errors import InputError, NotCachedError
from lensbridge.viz import AttentionView, attention
from lensbridge.viz.quantised import MISSING, Quantised

TEXT = "The Eiffel Tower is in the city of"


def root_of(view: AttentionView) -> ElementTree.Element:
    found = ElementTree.fromstring(view.fragment()).find("div[@data-lb-attention]")
    assert found is not None
    return found


def unpacked(text: str, digits: int) -> Any:
    """What the script reads: low bytes, high bytes, whole multiples of the step."""
    both = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(2, -1)
    steps = (both[0].astype(np.uint16) | (both[1].astype(np.uint16) << 8)).view(np.int16)
    return np.where(steps == MISSING, np.nan, steps / 10.0**digits)


def numbers_of(view: AttentionView) -> Any:
    root = root_of(view)
    found = unpacked(root.attrib["data-lb-attention"], int(root.attrib["data-digits"]))
    return found.reshape(view.patterns.shape)


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


@pytest.fixture(scope="module")
def cache(model: Any) -> Any:
    return model.run_with_cache(TEXT)[1]


def test_the_page_has_the_weights_of_the_bare_model(model: Any, cache: Any) -> None:
    bare = AutoModelForCausalLM.from_pretrained(
        Path(lensbridge.__file__).parent / "demo" / "model", attn_implementation="eager"
    )
    with torch.no_grad():
        wanted = bare(cache.tokens, output_attentions=True).attentions
    for layer in range(model.cfg.n_layers):
        view = cache.plot_attention(layer)
        assert np.abs(numbers_of(view) - wanted[layer][0].numpy()).max() < 0.51e-4  # half a step
        assert view.queries == view.keys == model.to_str_tokens(TEXT)


@given(
    arrays.arrays(np.float64, (2, 3, 4), elements=st.floats(-1e4, 1e4)),
    st.lists(st.integers(0, 23), max_size=3),
)
def test_numbers_are_rounded_to_a_decimal_step(values: Any, missing: list[int]) -> None:
    values.reshape(-1)[missing] = -np.inf
    packed = Quantised.of(values)
    found = unpacked(packed.text, packed.digits).reshape(values.shape)
    there = np.isfinite(values)
    assert (np.isnan(found) == ~there).all()
    assert np.abs(found - values)[there].max(initial=0.0) <= 0.5001 * 10.0**-packed.digits
    largest = np.abs(values[there]).max(initial=0.0)
    assert 10.0**-packed.digits <= max(1e-4, largest / 3_000)


def images(view: AttentionView) -> list[Any]:
    """The small pictures, as red, green, blue and opacity from 0 to 1."""
    uris = [image.attrib["src"] for image in root_of(view).iter("img")]
    files = [BytesIO(base64.b64decode(uri.partition(",")[2])) for uri in uris]
    return [np.asarray(Image.open(file).convert("RGBA")) / 255 for file in files]


def test_small_pictures_have_a_pixel_for_each_weight(cache: Any) -> None:
    view = cache.plot_attention(1)
    for image, weights in zip(images(view), view.patterns, strict=True):
        assert np.abs(image[..., 3] - weights).max() < 0.006  # of 127 shades
        assert image[weights > 0.01][:, :3] == pytest.approx(
            np.tile(channels(PLUS), ((weights > 0.01).sum(), 1)), abs=0.001
        )


def test_scores_have_signs_and_masked_ones_are_left_empty(cache: Any) -> None:
    view = cache.plot_attention(("attn_scores", 2))
    assert view.scale.diverging
    low = np.unravel_index(
        np.nanargmin(np.where(np.isfinite(view.patterns), view.patterns, 0)), view.patterns.shape
    )
    assert images(view)[low[0]][low[1], low[2], :3] == pytest.approx(channels(MINUS), abs=0.001)
    assert (np.isnan(numbers_of(view)) == np.isinf(view.patterns)).all()


def test_long_texts_are_pooled_so_that_no_large_weight_is_lost() -> None:
    values = np.zeros((2, 200, 200))
    values[1, 133, 77] = 1.0
    image = images(attention(values, [str(i) for i in range(200)]))[1]
    assert image.shape[:2] == (50, 50)
    assert image[133 // 4, 77 // 4, 3] == 1.0
    assert image[..., 3].sum() == 1.0


def test_without_a_script_the_text_shows_the_last_token(cache: Any) -> None:
    root = root_of(cache.plot_attention(1, head=2))
    weights = cache["pattern", 1][0, 2, -1]
    shares = [
        int(re.search(r"(\d+)%", span.attrib["style"])[1])  # type: ignore[index]
        for span in root.iter("span")
        if "lb-at-token" in span.attrib.get("class", "")
    ]
    assert shares == [round(100 * weight) for weight in weights.tolist()]
    order = weights.argsort(descending=True)[:3].tolist()
    told = next(div.text for div in root.iter("div") if div.attrib.get("class") == "lb-at-told")
    assert told is not None
    assert re.findall(r"(\d+) \S+ 0\.\d{4}", told) == [str(i) for i in order]


def test_heads_examples_and_positions_are_chosen(model: Any) -> None:
    _, cache = model.run_with_cache([TEXT, "When Tom"])
    view = cache.plot_attention(-1, head=[3, 1], positions=slice(2, 5))
    assert view.heads == ["3", "1"]
    assert view.queries == [" Eiffel", " Tower", " is"]
    assert torch.equal(
        torch.tensor(view.patterns).float(), cache["pattern", -1][0][[3, 1]][:, 2:5, 2:5]
    )
    assert json.loads(root_of(view).attrib["data-keys"]) == ["2 ·Eiffel", "3 ·Tower", "4 ·is"]
    marked = cache.tokens == model.to_single_token(" Tower")
    assert cache.plot_attention(0, positions=marked).queries == [" Tower"]
    assert cache.plot_attention(0, positions=[[3, -1], [0]]).queries[0] == " Tower"
    assert cache.plot_attention(0, positions=3).queries == [" Tower"]
    short = cache.plot_attention(0, batch=1)
    assert short.queries == model.to_str_tokens("When Tom")  # without the padding
    alone = model.run_with_cache("When Tom")[1]["pattern", 0][0]
    assert np.abs(short.patterns - alone.numpy()).max() < 1e-6


def test_encoders_and_cross_attention() -> None:
    model = of_class("T5ForConditionalGeneration")
    ids, decoder = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 3, 4]])
    _, cache = model.run_with_cache(ids, decoder_input_ids=decoder)
    crossing = cache.plot_attention("decoder.1.cross_attn.hook_pattern", key_tokens=list("abcd"))
    assert (crossing.title, crossing.keys) == ("Cross-attention, layer 1", list("abcd"))
    assert crossing.patterns.shape == (4, 3, 4)
    texts = [one for one in root_of(crossing).iter("div") if "data-side" in one.attrib]
    assert [len(list(text.iter("span"))) for text in texts] == [3, 4]
    assert cache.plot_attention("encoder.0.attn.hook_pattern").patterns.shape == (4, 4, 4)
    assert cache.plot_attention(0).patterns.shape == (4, 3, 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": "hook_embed"}, "hook_embed is no attention pattern"),
        ({"layer": 0, "head": 4}, r"no head 4: this layer has 4"),
        ({"layer": 0, "batch": 1}, "no example 1: the batch has 1"),
        ({"layer": 0, "positions": [9]}, r"There are 9 positions; \[9\]"),
        ({"layer": 0, "positions": slice(9, 20)}, "chooses none of 9 positions"),
        ({"layer": 0, "tokens": ["a"]}, "tokens has 1 texts; the pattern has 9 positions"),
        ({"layer": 0, "tokens": "a text"}, "tokens has one text"),
    ],
)
def test_what_is_not_there_is_refused(cache: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cache.plot_attention(**asked)


def test_a_layer_that_was_not_kept_is_refused(model: Any) -> None:
    _, cache = model.run_with_cache(TEXT, names_filter="resid_post")
    with pytest.raises(NotCachedError, match="Ask for it"):
        cache.plot_attention(0)


@pytest.mark.parametrize(
    ("shape", "tokens", "message"),
    [
        ((65, 2, 2), 2, r"Up to 64 heads and 256 tokens.*head=\[0, 1\], positions="),
        ((1, 257, 257), 257, "Up to 64 heads and 256 tokens"),
        ((1, 2, 3), 2, "2 for keys"),
        ((2, 2, 2, 2), 2, r"drawn as \[head, query, key\]"),
        ((0, 2, 2), 2, r"drawn as \[head, query, key\]"),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], tokens: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention(torch.zeros(shape), [str(i) for i in range(tokens)])
    with pytest.raises(InputError, match="text of each token, not one text"):
        attention(torch.zeros(2, 2), "ab")


def test_the_largest_picture_is_small_enough_to_send() -> None:
    torch.manual_seed(0)
    masked = torch.ones(256, 256).triu(1).bool()
    scores = (3 * torch.randn(64, 256, 256)).masked_fill(masked, -torch.inf)
    page = attention(scores.softmax(-1), [f" w{i}" for i in range(256)]).html()
    assert len(page) < 4_000_000


@pytest.mark.parametrize(
    "token", ["<script>alert(1)</script>", '" onload="x', "a&b", "</div>", "]]>"]
)
def test_any_token_can_be_drawn(token: str) -> None:
    view = attention([[1.0, 0.0], [0.5, 0.5]], [token, "b\n"], title=token)
    root = root_of(view)
    assert json.loads(root.attrib["data-keys"])[0] == f"0 {token}"
    assert view.fragment().count("<script>") == 1
    assert ElementTree.fromstring(view.html().partition("\n")[2]).findtext("head/title") == token


def test_it_is_a_picture_like_others(cache: Any, tmp_path: Path) -> None:
    view = cache.plot_attention(1, head=[0, 2])
    text = view.html().replace("http://www.w3.org/", "")
    assert not re.search(r"http|<link|@import|url\(", text)
    assert not ids(view.fragment())
    for suffix in (".html", ".svg", ".png", ".pdf"):
        assert view.save(tmp_path / f"x{suffix}").stat().st_size > 1000
    assert pixels(view.png()).shape[1] == pytest.approx(2 * view.size[0], abs=2)
    cells = [mark.opacity for mark in marks(view.svg())]
    assert cells == pytest.approx(cache["pattern", 1][0, 0].reshape(-1).tolist(), abs=1e-5)
    assert "plot_attention" in dir(cache)


def test_plotly_has_the_chosen_head(cache: Any) -> None:
    pytest.importorskip("plotly")
    figure = cache.plot_attention(1, head=[3]).to_plotly()
    assert np.array_equal(np.array(figure.data[0].z), cache["pattern", 1][0, 3].double().numpy())

"""Coloured texts: one, or several on one scale."""

import re
from xml.etree import ElementTree

import pytest
import torch
from pictures import marks

from lensbridge.errors import InputError
from lensbridge.viz import ColouredText, Panels, text

TOKENS = ["The", " cat", " <sat>"]


def shares(html: str) -> list[list[int]]:
    """The strengths of the tokens' colours in percent, text by text."""
    blocks = [d for d in ElementTree.fromstring(html).iter("div") if d.get("class") == "lb-text"]
    found = [re.findall(r"(\d+)%", ElementTree.tostring(block).decode()) for block in blocks]
    return [list(map(int, one)) for one in found]


def test_one_text_has_its_own_scale() -> None:
    picture = text(TOKENS, torch.tensor([0.5, -1.0, 0.0]), title="t", unit="nats", marked=[1])
    assert isinstance(picture, ColouredText)
    assert shares(picture.fragment()) == [[50, 100, 0]]
    assert [mark.opacity for mark in marks(picture.svg())] == pytest.approx([0.5, 1.0, 0.0])
    assert "&lt;sat&gt;" in picture.fragment()


def test_two_runs_share_a_scale_and_one_legend() -> None:
    picture = text(TOKENS, {"base": [1.0, 2.0, 4.0], "patched": torch.tensor([0.0, 1.0, 1.0])})
    assert isinstance(picture, Panels)
    assert shares(picture.fragment()) == [[25, 50, 100], [0, 25, 25]]
    assert picture.fragment().count("0 to 4") == 1
    assert [one.title for one in picture.pictures] == ["base", "patched"]


def test_runs_may_have_tokens_of_their_own() -> None:
    picture = text({"a": ["x"], "b": ["y", "z"]}, {"a": [1.0], "b": [2.0, 3.0]})
    assert isinstance(picture, Panels)
    assert [one.tokens for one in picture.pictures] == [["x"], ["y", "z"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("tokens", "values", "message"),
    [
        (TOKENS, [1.0], "1 values for 3 tokens"),
        (TOKENS, {"base": [1.0]}, "1 values of 'base' for 3 tokens"),
        (TOKENS, [1.0, float("nan"), 2.0], "1 of 3 values are not finite"),
        ("abc", [1.0, 2.0, 3.0], "text of each token, not one text"),
        ({"a": ["x"]}, [1.0], "needs the same names"),
        ({"a": ["x"]}, {"b": [1.0]}, "tokens for 'a', not for 'b'"),
        (TOKENS, {}, "no values to draw"),
        (TOKENS, ["a", "b", "c"], "numbers are drawn"),
    ],
)
def test_what_does_not_fit_is_refused(tokens: object, values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        text(tokens, values)  # type: ignore[arg-type]

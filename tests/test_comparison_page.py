"""docs/comparison.md is what docs/comparison.json gives, and the README says no more than that."""

import json

import pytest

from benchmarks.comparison import __main__ as main
from benchmarks.comparison.page import WORDS, page
from benchmarks.comparison.summaries import summary


def outcome(kind: str, note: str = "") -> dict[str, str]:
    return {"kind": kind, "note": note}


def test_the_page_is_what_the_record_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--check"]) == 0, capsys.readouterr().out


def test_every_case_ran_with_every_tool_on_every_family() -> None:
    cases = json.loads(main.RECORD.read_text(encoding="utf-8"))["cases"]
    assert len(cases["titles"]) >= 25
    assert len(cases["families"]) >= 8
    assert set(cases["outcomes"]) == {*main.SHARED, "nnterp"}
    for tool, outcomes in cases["outcomes"].items():
        assert set(outcomes) == set(cases["titles"]), tool
        kinds = {one["kind"] for some in outcomes.values() for one in some.values()}
        assert kinds <= set(WORDS), tool


def test_no_case_of_lensbridge_is_wrong_or_raises() -> None:
    ours = json.loads(main.RECORD.read_text(encoding="utf-8"))["cases"]["outcomes"]["lensbridge"]
    bad = {key: summary(one) for key, one in ours.items() if summary(one)["kind"] != "works"}
    assert not bad


def test_an_edited_record_no_longer_matches_the_page() -> None:
    found = json.loads(main.RECORD.read_text(encoding="utf-8"))
    written = page(found)
    case = found["cases"]["outcomes"]["lensbridge"]["idle"]
    case["gpt2"] = outcome("wrong", "off by 12.0%")
    assert page(found) != written
    assert (
        "logits of a run without hooks are those of the bare model, bit for bit: **wrong** gpt2"
        in page(found)
    )


def test_the_worst_family_decides() -> None:
    found = {
        "a": outcome("works"),
        "b": outcome("wrong", "off by 2.0%"),
        "c": outcome("wrong", "off by 31.0%"),
        "d": outcome("error", "ValueError: no"),
    }
    assert summary(found) == outcome("wrong", "b, c: off by 31.0% (2 of 4 do better)")
    assert summary({"a": outcome("works"), "b": outcome("works")}) == outcome("works")
    assert summary({"a": outcome("absent"), "b": outcome("works")})["kind"] == "absent"

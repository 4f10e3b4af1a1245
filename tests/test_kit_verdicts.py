"""The verdict of the checks: blocks that are not held, badges, and the change that is right."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lensbridge_adapters.gpt2 import GPT2

from lensbridge.conformance.check import Row
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.held_blocks import UNHELD
from lensbridge.conformance.record import badge, record, write
from lensbridge.conformance.report import Report
from lensbridge.errors import ConformanceError
from lensbridge.spec import Architecture, Block, FusedQKV
from lensbridge.testing import conformance, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

HELD = tuple(check for check in CHECKS if check.name in (UNHELD, "values are finite"))


def _in_block(branch: str, **fields: object) -> Architecture:
    """GPT-2 with other fields in one branch of its block."""
    assert isinstance(GPT2.block, Block)
    changed = replace(vars(GPT2.block)[branch], **fields)
    return replace(GPT2, block=replace(GPT2.block, **{branch: changed}))


def _with_second_block() -> Architecture:
    """GPT-2 with a second block that no layer is read with, and that is wrong."""
    assert isinstance(GPT2.block, Block)
    wrong = _in_block("mlp", act="relu").block
    assert isinstance(wrong, Block)
    return replace(GPT2, block=(GPT2.block, wrong))


# --- blocks that are not held --------------------------------------------------------------------


def test_the_verdict_names_a_block_that_no_layer_is_read_with() -> None:
    report = conformance(_with_second_block(), checks=HELD)
    assert report.passed
    assert report.verdict == "conforms: 1 passed, 1 skipped; not held: block[1] of 'gpt2'"
    assert conformance(GPT2, checks=HELD).verdict == "conforms: 2 passed"


def _rows(*unheld: str) -> list[Row]:
    """The rows of one model for each detail of the check; all others passed."""
    return [
        replace(row, status="skipped", detail=detail) if row.check == UNHELD and detail else row
        for model, detail in zip("ABC", unheld, strict=False)
        for row in (Row(one.name, model, "", "passed", architecture="mine") for one in CHECKS)
    ]


def test_a_badge_is_not_green_if_a_block_is_not_held() -> None:
    told = record(_rows("block[1] is not held: no layer."))
    assert (told["passed"], told["color"]) == (True, "yellow")
    assert f"{len(CHECKS) - 1} checks, not held: block[1] of 'mine', " in told["message"]


@pytest.mark.parametrize("other", ["", "encoder: block[0] is not held: no layer."])
def test_a_block_is_held_if_one_of_several_models_has_it(other: str) -> None:
    told = record(_rows("block[1] is not held: no layer.", other))
    assert told["color"] == "brightgreen"


def test_a_dtype_in_which_the_check_does_not_run_holds_nothing() -> None:
    coarse = "sums in bfloat16 are too coarse to compare"
    report = Report(tuple(_rows("block[0], block[1] are not held: no layer.", coarse)))
    assert report.verdict.endswith("; not held: block[0] of 'mine', block[1] of 'mine'")


# --- badges --------------------------------------------------------------------------------------


def test_a_badge_has_the_keys_of_an_endpoint_and_no_others(tmp_path: Path) -> None:
    told = record(_rows(""))
    write(tmp_path / "conformance.json", told)
    assert json.loads((tmp_path / "conformance.json").read_text()) == told
    drawn = json.loads((tmp_path / "conformance-badge.json").read_text())
    assert drawn == badge(told)
    assert drawn.pop("schemaVersion") == 1
    assert drawn == {"label": "lensbridge", "message": told["message"], "color": "brightgreen"}


# --- what would be right -------------------------------------------------------------------------


def test_an_error_says_first_which_change_is_right() -> None:
    report = conformance(_in_block("mlp", act="relu"))
    with pytest.raises(ConformanceError) as caught:
        report.require()
    first, second, third, *_ = str(caught.value).splitlines()
    assert first.startswith("does not conform: ")
    assert second.startswith("What the description may say wrongly: act, ")
    assert third == "With one change it conforms: block.mlp.act: 'relu' -> 'activation_function'."
    assert report.advice == (second, third)


def test_a_report_of_a_model_names_keys_and_values_that_are_exchanged() -> None:
    order = replace(FusedQKV("c_attn", layout="blocked"), order="qvk")
    hf_model = tiny_model(GPT2)
    report = conformance(hf_model, architecture=_in_block("attn", qkv=order))
    assert report.advice[0].startswith("What the description may say wrongly: order, ")
    assert report.advice[1] == (
        "With one change it conforms: block.attn.qkv.order: 'qvk' -> 'qkv'."
    )
    assert conformance(hf_model, architecture=GPT2, checks=HELD).advice == ()

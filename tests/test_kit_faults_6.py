"""What the kit could not hold, what a badge shows, and messages about wrong descriptions."""

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
from lensbridge.spec import Architecture, Block
from lensbridge.testing import conformance

HELD = tuple(check for check in CHECKS if check.name in (UNHELD, "values are finite"))


def _with_second_block() -> Architecture:
    """GPT-2 with a second block that no layer is read with, and that is wrong."""
    assert isinstance(GPT2.block, Block)
    assert GPT2.block.mlp is not None
    wrong = replace(GPT2.block, mlp=replace(GPT2.block.mlp, act="relu"))
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

"""What the kit says of a wrong description, and what its record says of a run of some checks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lensbridge_adapters.doge import DOGE
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.granite import GRANITE

from lensbridge.conformance.offers import offers
from lensbridge.conformance.record import record
from lensbridge.conformance.repair import conforms_with, repair, suspects
from lensbridge.spec import Architecture, Block
from lensbridge.testing import CHECKS, Row, build, conformance

pytestmark = pytest.mark.usefixtures("one_thread")

pytest_plugins = ["pytester"]


def _in_block(architecture: Architecture, branch: str, **fields: object) -> Architecture:
    block = architecture.block
    assert isinstance(block, Block)
    changed = replace(vars(block)[branch], **fields)
    return replace(architecture, block=replace(block, **{branch: changed}))


WITHOUT_SKIPS = _in_block(_in_block(DOGE, "attn", skip_scale=None), "mlp", skip_scale=None)
ACT, SUM = "the activation is as named", "the stream adds up"


@pytest.mark.parametrize(
    ("wrong", "check", "field", "right"),
    [
        (_in_block(GPT2, "mlp", act="relu"), ACT, "act", "'activation_function'"),
        (_in_block(GRANITE, "attn", scale=None), SUM, "scale", "'residual_multiplier'"),
    ],
)
def test_the_right_value_is_named_and_its_field_is_first(
    wrong: Architecture, check: str, field: str, right: str
) -> None:
    mutant = repair(build(wrong), [check])
    assert mutant is not None
    assert mutant.change.endswith(right)
    assert suspects([check], mutant).startswith(f"What the description may say wrongly: {field}, ")


def test_scales_that_both_branches_lack_are_found() -> None:
    mutant = repair(build(WITHOUT_SKIPS), [SUM])
    assert mutant is not None
    assert conforms_with(mutant) == (
        "With two changes it conforms: block.attn.skip_scale: None -> 'input_residual' and "
        "block.mlp.skip_scale: None -> 'post_attention_residual'."
    )


def test_what_is_named_as_the_slot_is_offered_first() -> None:
    subject = build(replace(GRANITE, logit_scale=None, embed_scale=None))
    changes = [one.change for one in offers(subject)]
    logit = [change for change in changes if change.startswith("logit_scale")]
    assert logit[:2] == [f"logit_scale: None -> '{one}logits_scaling'" for one in ("", "1 / ")]
    assert "embed_scale: None -> 'embedding_multiplier'" in changes
    assert not any(change.startswith("cycles") for change in changes)


def test_a_report_says_what_a_failure_is_about() -> None:
    report = conformance(_in_block(GPT2, "mlp", act="relu"))
    (row,) = report.failures
    assert f"about act, sparsity: {row.detail}" in str(report)
    assert record(report.rows)["failures"][0]["about"] == "act, sparsity"


# --- records ---------------------------------------------------------------------------------


def _rows(failed: int) -> list[Row]:
    told = [Row(one.name, "M", "float32", "passed") for one in CHECKS]
    return [*told[failed:], *(replace(one, status="failed") for one in told[:failed])]


def test_the_record_of_every_check_is_green() -> None:
    told = record(_rows(0))
    assert (told["passed"], told["color"]) == (True, "brightgreen")
    assert told["message"].startswith(f"{len(CHECKS)} checks, ")


def test_the_record_of_some_checks_is_not() -> None:
    told = record(_rows(0)[:7])
    assert (told["passed"], told["color"]) == (False, "yellow")
    assert told["message"].startswith("partial run of 7 checks, ")
    assert told["counts"]["left out"] == len(CHECKS) - 7
    assert not record(_rows(0), left_out=1)["passed"]


@pytest.mark.parametrize(
    ("rows", "words", "color"),
    [
        (_rows(1), "1 check fails, ", "red"),
        (_rows(2), "2 checks fail, ", "red"),
        ([], "nothing was checked, ", "lightgrey"),
    ],
)
def test_the_words_of_a_badge(rows: list[Row], words: str, color: str) -> None:
    told = record(rows)
    assert told["message"].startswith(words)
    assert (told["passed"], told["color"]) == (False, color)


CONFTEST = """
import torch
import transformers
torch.set_num_threads(1)
pytest_plugins = ["lensbridge.testing.plugin"]
from dataclasses import replace
from lensbridge_adapters.gpt2 import GPT2
LENSBRIDGE_ARCHITECTURES = {architectures}
from lensbridge.testing import CORE as LENSBRIDGE_VARIANTS
"""


def _suite(pytester: pytest.Pytester, architectures: str, *options: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST.format(architectures=architectures))
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)


def test_the_plugin_writes_into_a_new_folder_that_a_run_was_partial(
    pytester: pytest.Pytester,
) -> None:
    file = Path("new", "folder", "told.json")
    result = _suite(pytester, "(GPT2,)", "-k", "logits", "--conformance-report", str(file))
    assert result.ret == 0
    told = json.loads((pytester.path / file).read_text())
    assert (told["passed"], told["color"]) == (False, "yellow")
    assert told["message"].startswith("partial run of ")


def test_the_plugin_records_a_description_that_does_not_fit(pytester: pytest.Pytester) -> None:
    wrong = "(replace(GPT2, final_norm='transformer.nothing'),)"
    assert _suite(pytester, wrong, "--conformance-report", "told.json").ret == 1
    told = json.loads((pytester.path / "told.json").read_text())
    assert told["message"].startswith("1 check fails, ")
    assert told["failures"][0]["check"] == "the description fits the model"


def test_the_plugin_refuses_a_folder_before_the_tests(pytester: pytest.Pytester) -> None:
    result = _suite(pytester, "(GPT2,)", "--conformance-report", str(pytester.path))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is a folder. Name a file.*"])

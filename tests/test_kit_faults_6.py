"""What the kit could not hold, what a badge shows, and messages about wrong descriptions."""

import importlib.util
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.granite import GRANITE
from lensbridge_adapters.olmo2 import OLMO2

from lensbridge.cli.new_adapter import _opening
from lensbridge.conformance.check import Row
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.failures import told
from lensbridge.conformance.held_blocks import UNHELD
from lensbridge.conformance.record import badge, record, write
from lensbridge.conformance.report import Report
from lensbridge.errors import ConformanceError, LoadError
from lensbridge.loading.checkpoint import model_class
from lensbridge.spec import Architecture, Block, FusedQKV, SplitQKV
from lensbridge.testing import build, conformance, tiny_model

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


# --- messages ------------------------------------------------------------------------------------


def _refused(wrong: Architecture) -> str:
    """The first line of what is said when a tiny model is loaded with a description."""
    with pytest.raises(LoadError) as caught:
        build(wrong)
    return str(caught.value).partition("\n")[0].partition(": ")[2]


def _granite(**fields: object) -> Architecture:
    assert isinstance(GRANITE.block, Block)
    assert GRANITE.block.attn is not None
    changed = replace(GRANITE.block.attn, **fields)  # type: ignore[arg-type]
    return replace(GRANITE, block=replace(GRANITE.block, attn=changed))


def _olmo2(**fields: object) -> Architecture:
    assert isinstance(OLMO2.block, Block)
    assert OLMO2.block.attn is not None
    changed = replace(OLMO2.block.attn, **fields)  # type: ignore[arg-type]
    return replace(OLMO2, block=replace(OLMO2.block, attn=changed))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (_granite(qkv=SplitQKV("k_proj", "q_proj", "v_proj")), "q and k are exchanged"),
        (_granite(scale="residual_multiplyer"), "Did you mean 'residual_multiplier'"),
        (_granite(skip_scale="self_atn"), "Did you mean 'self_attn'"),
        (replace(GRANITE, dims=replace(GRANITE.dims, heads=0)), "a size in dims is 0"),
        (replace(GRANITE, dims=replace(GRANITE.dims, kv_heads=1)), "says 1 (dims.kv_heads)"),
        (replace(GRANITE, dims=replace(GRANITE.dims, heads=2)), "with 2 query heads (dims.heads)"),
        (_olmo2(qk_norm_axes="positions_first"), "all heads together"),
    ],
)
def test_a_refusal_names_the_fact(wrong: Architecture, words: str) -> None:
    assert words in _refused(wrong)


@pytest.mark.parametrize("error", [RuntimeError("einsum(): no"), IndexError("no"), KeyError("no")])
def test_a_report_has_no_errors_of_torch(error: Exception) -> None:
    assert re.fullmatch(r"it cannot be computed with .* names \('?no'?\)\.", told(error))


# --- models with code of their own ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "saved", "wanted"),
    [
        ({"AutoModel": "m.Encoder"}, "Encoder", "AutoModel"),
        ({"AutoModelForImageClassification": "m.Sees"}, "Sees", "AutoModelForImageClassification"),
        ({"AutoModel": "m.Base", "AutoModelForCausalLM": "m.LM"}, "LM", "AutoModelForCausalLM"),
        ({"AutoModel": "m.Base", "AutoModelForCausalLM": "m.LM"}, "Base", "AutoModel"),
        ({"AutoModel": "m.LM", "AutoModelForCausalLM": "m.LM"}, "Other", "AutoModelForCausalLM"),
        ({}, "LM", "AutoModelForCausalLM"),
    ],
)
def test_the_class_of_a_repository_with_code_is_the_one_that_was_saved(
    tmp_path: Path, offered: dict[str, str], saved: str, wanted: str
) -> None:
    told = {"architectures": [saved], "auto_map": {"AutoConfig": "m.Config", **offered}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    found = model_class(str(tmp_path), {"trust_remote_code": True})
    assert found.__name__ == wanted


def test_the_test_of_an_adapter_opens_a_repository_with_code_as_load_does() -> None:
    call, needs = _opening("a/b", torch.nn.Linear(1, 1), "MINE")
    assert needs == "import lensbridge\n"
    assert call == ('lensbridge.load("a/b", architecture=MINE, trust_remote_code=True).hf_model')


# --- words for what there is not -----------------------------------------------------------------

LEFT_OUT = tuple(check for check in CHECKS if check.name == "nothing is left out")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (replace(GRANITE, logit_softcap="logit_scaling"), "logit_softcap: the config has no field"),
        (_granite(clip="attention_multipliers"), "attn.clip: the config has no field"),
        (_granite(position_bias="rotary"), "attn.position_bias: no layer that is read with it has"),
        (_granite(out_bias="o_bias"), "attn.out_bias: no layer that is read with it has 'o_bias'"),
    ],
)
def test_a_word_for_what_is_nowhere_is_refused(wrong: Architecture, said: str) -> None:
    (row,) = conformance(wrong, checks=LEFT_OUT).failures
    assert row.detail.startswith(said)


@pytest.mark.parametrize(
    ("norms", "said"),
    [({"inner": "norm"}, "norms.inner: no layer"), ({"gate": "mlp"}, "norms.gate: it is a module")],
)
def test_a_gate_of_a_norm_needs_the_norm(norms: dict[str, str], said: str) -> None:
    assert isinstance(GRANITE.block, Block)
    block = replace(GRANITE.block, norms=replace(GRANITE.block.norms, **norms))  # type: ignore[arg-type]
    (row,) = conformance(replace(GRANITE, block=block), checks=LEFT_OUT).failures
    assert row.detail.startswith(said)


# --- packages of other people --------------------------------------------------------------------


@pytest.fixture
def known_adapters() -> ModuleType:
    """The script that checks the packages of other people."""
    file = Path(__file__).parent.parent / "docs" / "adapters.py"
    spec = importlib.util.spec_from_file_location("known_adapters", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "package",
    ["lensbridge-fox", "Lensbridge_Fox==1.2", "wheels/lensbridge_fox-1.2-py3-none-any.whl"],
)
def test_the_record_of_a_package_is_not_that_of_one_it_needs(
    known_adapters: ModuleType, package: str
) -> None:
    found = [["lensbridge-bear", "3.0", "bear"], ["lensbridge-fox", "1.2", "fox"]]
    assert known_adapters._of(package, found) == found[1:]


def test_a_package_that_hangs_does_not_take_the_night(
    known_adapters: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_adapters, "LONGEST", 0.2)
    done = known_adapters._run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert done.returncode == 1
    assert known_adapters._last(done.stderr).startswith("it took longer than ")


def test_an_index_without_json_is_read(
    known_adapters: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = b"<html><a href='/simple/lensbridge-fox/'> Lensbridge_Fox </a><a href='x'>numpy</a>"
    monkeypatch.setattr(known_adapters, "urlopen", lambda asked, timeout: io.BytesIO(page))
    assert known_adapters.names("http://index/simple/") == ["Lensbridge_Fox"]

"""The conformance kit: right descriptions pass, wrong ones fail with a message that says what."""

from dataclasses import replace

import pytest
import torch
import transformers
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.gpt_neox import GPT_NEOX, GPT_NEOX_SEQUENTIAL
from lensbridge_adapters.llama import LLAMA
from tiny_models import Shape, tokens
from tiny_models import build as build_by_hand
from transformers import BertConfig, LlamaConfig

import lensbridge
from lensbridge.cli import main
from lensbridge.errors import ConformanceError, LoadError
from lensbridge.spec import FusedQKV
from lensbridge.testing import (
    CHECKS,
    CORE,
    EVERY,
    Check,
    Subject,
    build,
    conformance,
    run_check,
    tiny_config,
)

pytestmark = pytest.mark.usefixtures("one_thread")

pytest_plugins = ["pytester"]


WRONG = replace(GPT2, block=replace(GPT2.block, residual="parallel"))
"""A description of GPT-2 with one word wrong; `lensbridge doctor` finds it by this name."""


@pytest.mark.parametrize("architecture", [GPT2, GPT_NEOX, GPT_NEOX_SEQUENTIAL])
def test_right_descriptions_conform_in_every_variant(architecture: lensbridge.Architecture) -> None:
    report = conformance(architecture, variants=EVERY)
    assert report.passed, str(report)
    assert {row.variant for row in report.rows} == {
        "float32, sdpa",
        "float32, eager",
        "float64, sdpa",
        "bfloat16, sdpa",
    }


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"])
def test_each_class_of_an_architecture_is_built(name: str) -> None:
    report = conformance(LLAMA, classes=[name])
    assert report.passed, str(report)
    assert {row.model for row in report.rows} == {name}


@pytest.mark.parametrize("family", ["gpt2", "mistral", "neox"])
def test_a_model_is_checked_as_it_is(family: str) -> None:
    model = build_by_hand(Shape(family))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = conformance(model, inputs={"input_ids": tokens()})
    assert report.passed, str(report)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_wrong_description_fails_and_says_where() -> None:
    report = conformance(WRONG)
    assert not report.passed
    assert report.verdict.startswith("does not conform")
    failed = {row.check: row.detail for row in report.failures}
    assert "blocks.0.hook_mlp_in should be hook_resid_pre" in failed["branches read the stream"]
    assert "branches read the stream" in str(report)
    with pytest.raises(ConformanceError, match="hook_mlp_in should be hook_resid_pre"):
        report.require()


def test_a_description_that_does_not_fit_is_one_row() -> None:
    qkv = FusedQKV("c_attn_", layout="blocked")
    wrong = replace(GPT2, block=replace(GPT2.block, attn=replace(GPT2.block.attn, qkv=qkv)))
    (row,) = conformance(wrong).rows
    assert row.check == "the description fits the model"
    assert "c_attn_" in row.detail


def test_a_check_that_compares_nothing_fails() -> None:
    row = run_check(Check("empty", lambda subject: None, "nothing"), build(GPT2))
    assert row.status == "failed"
    assert "nothing to compare" in row.detail


def test_an_error_of_the_lens_is_a_failure() -> None:
    def broken(subject: Subject) -> None:
        subject.read(["blocks.0.hook_resid_pree"])

    row = run_check(Check("broken", broken, "nothing"), build(GPT2))
    assert row.status == "failed"
    assert "Did you mean" in row.detail


def test_every_check_is_told_apart_and_says_what_it_falsifies() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.falsifies for check in CHECKS)


@pytest.mark.parametrize("architecture", [GPT2, LLAMA])
def test_a_check_applies_or_says_why_not(architecture: lensbridge.Architecture) -> None:
    rows = conformance(architecture, classes=architecture.classes[:1]).rows
    assert len(rows) == len(CHECKS)
    assert all(row.detail for row in rows if row.status == "skipped")
    assert sum(row.status == "passed" for row in rows) >= 38


def test_half_precision_compares_only_what_is_exact() -> None:
    (variant,) = [one for one in EVERY if one.dtype is torch.bfloat16]
    subject = build(GPT2, variant=variant)
    applying = [check for check in CHECKS if check.applies(subject) is None]
    assert applying
    assert not any(check.exact for check in applying)


def test_tiny_configs_are_tiny_and_their_sizes_differ() -> None:
    config = tiny_config(LlamaConfig)
    sizes = [config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim]
    assert len(set(sizes)) == len(sizes)
    assert config.head_dim * config.num_attention_heads != config.hidden_size
    assert config.num_key_value_heads != config.num_attention_heads
    assert tiny_config(BertConfig, num_hidden_layers=3).num_hidden_layers == 3


def test_random_weights_leave_nothing_trivial() -> None:
    subject = build(GPT2)
    gain, bias = subject.weight("blocks.0.ln1.w"), subject.weight("blocks.0.ln1.b")
    assert gain is not None
    assert bias is not None
    assert gain.std() > 0.1
    assert bias.abs().mean() > 0.1


def test_an_unknown_class_is_explained() -> None:
    with pytest.raises(LoadError, match="no class 'NoSuchModel'"):
        build(replace(GPT2, classes=("NoSuchModel",)))


# --- the plugin ------------------------------------------------------------------------------

CONFTEST = """
import torch
import transformers
torch.set_num_threads(1)
pytest_plugins = ["lensbridge.testing.plugin"]
from {module} import ARCHITECTURES
LENSBRIDGE_ARCHITECTURES = ARCHITECTURES
from lensbridge.testing import CORE as LENSBRIDGE_VARIANTS
"""

WRONG_ADAPTER = """
from dataclasses import replace
from lensbridge_adapters.gpt2 import GPT2
ARCHITECTURES = (replace(GPT2, block=replace(GPT2.block, residual="parallel")),)
"""


def run_suite(pytester: pytest.Pytester, module: str) -> pytest.RunResult:
    """Run a third party's test suite, which has nothing but its conftest."""
    pytester.makeconftest(CONFTEST.format(module=module))
    pytester.syspathinsert()
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rs")


def test_three_lines_in_a_conftest_run_the_whole_kit(pytester: pytest.Pytester) -> None:
    result = run_suite(pytester, "lensbridge_adapters.gpt2")
    counts = result.parseoutcomes()
    assert result.ret == 0
    assert counts["passed"] + counts["skipped"] == len(CHECKS) * len(CORE)


def test_a_wrong_adapter_fails_with_a_readable_message(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(wrong_adapter=WRONG_ADAPTER)
    result = run_suite(pytester, "wrong_adapter")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "gpt2-GPT2LMHeadModel-float32-default does not conform: branches read the stream",
            "blocks.0.hook_mlp_in should be hook_resid_pre; they differ by up to *",
            "What the description may say wrongly: residual, norms, fed_more.",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


# --- lensbridge doctor -----------------------------------------------------------------------


def test_doctor_finds_the_bundled_model_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "demo"]) == 0
    out = capsys.readouterr().out
    first, *versions = out.splitlines()
    assert first.startswith("GPT2LMHeadModel behaves as its description 'gpt2' says: ")
    assert versions[0].startswith(f"transformers {transformers.__version__} (tested with 5.")
    assert versions[1].startswith(f"torch {torch.__version__} (tested with 2.")
    assert "passed  reading changes nothing" in out
    assert "\nconforms: " in out
    assert "skipped " not in out.partition("\nconforms")[0]


def test_doctor_rejects_a_wrong_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "demo", "--adapter", "test_conformance_kit:WRONG", "--all"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("GPT2LMHeadModel does not behave as its description")
    assert "failed  branches read the stream" in out
    assert "skipped rotary rotates" in out
    assert "does not conform" in out


def test_doctor_explains_an_adapter_that_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "demo", "--adapter", "gpt3"]) == 1
    assert "There is no adapter 'gpt3'. Did you mean 'gpt" in capsys.readouterr().err
    assert main(["doctor", "demo", "--adapter", "no_such_module:X"]) == 1
    assert "There is no adapter 'no_such_module:X'" in capsys.readouterr().err
    assert main(["doctor", "demo", "--adapter", "llama"]) == 1
    assert "does not fit GPT2LMHeadModel" in capsys.readouterr().err

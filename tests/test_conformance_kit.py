"""The conformance kit: right descriptions pass, wrong ones fail with a message that says what."""

import re
from dataclasses import replace

import pytest
import torch
import transformers
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.gpt_neox import GPT_NEOX, GPT_NEOX_SEQUENTIAL
from lensbridge_adapters.llama import LLAMA
from lensbridge_adapters.mixtral import MIXTRAL
from tiny_models import Shape, tokens
from tiny_models import build as build_by_hand
from transformers import BertConfig, DogeConfig, DogeForCausalLM, LlamaConfig

import lensbridge
from lensbridge.cli import main
from lensbridge.conformance.other_weights import constants_of, with_other_weights
from lensbridge.conformance.repair import repair
from lensbridge.errors import ConformanceError, InputError, LoadError
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


DOGE = replace(
    LLAMA,
    name="doge",
    classes=("DogeForCausalLM",),
    block=replace(LLAMA.block, attn=replace(LLAMA.block.attn, q_norm="q_norm", k_norm="k_norm")),
)
"""A description that leaves out scales of the stream, which are one in a new model."""


def new_doge() -> transformers.PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 44, "vocab_size": 97}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return DogeForCausalLM(DogeConfig(**sizes, **heads, max_position_embeddings=48)).eval()


def test_scales_that_start_at_one_are_found_on_a_copy_with_other_weights() -> None:
    model = new_doge()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = conformance(model, architecture=DOGE)
    found = {row.check for row in report.failures if row.variant == "other weights"}
    assert "the stream adds up" in found
    assert not [row for row in report.failures if row.variant != "other weights"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_copy_is_named_and_what_cannot_be_copied_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_by_hand(Shape("gpt2"))
    with torch.no_grad():
        model.transformer.h[1].ln_1.weight.fill_(1.0)
    *_, row = conformance(model).rows
    assert (row.check, row.status) == ("the same holds with other weights", "passed")
    assert row.detail.startswith("1 of its parameters")
    model.transformer.h[0].forward = lambda *args, **kwargs: None
    assert with_other_weights(model) is None
    del model.transformer.h[0].forward
    monkeypatch.setattr("lensbridge.conformance.kit.with_other_weights", lambda model: None)
    *_, row = conformance(model).rows
    assert row.status == "skipped"
    assert "transformer.h.1.ln_1.weight" in row.detail


def test_constant_parameters_alone_are_copied_of_a_large_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_by_hand(Shape("gpt2"))
    with torch.no_grad():
        model.transformer.ln_f.bias.zero_()
    assert constants_of(model) == ["transformer.ln_f.bias"]
    monkeypatch.setattr("lensbridge.conformance.other_weights.COPY_LIMIT", 10)
    copy = with_other_weights(model)
    assert copy is not None
    own, other = dict(model.named_parameters()), dict(copy.named_parameters())
    assert [name for name in own if other[name] is not own[name]] == ["transformer.ln_f.bias"]
    assert other["transformer.ln_f.bias"].std() > 0.1
    assert not own["transformer.ln_f.bias"].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hiden_size": 24}, "no field 'hiden_size'. Did you mean 'hidden_size'?"),
        ({"model": object()}, "no field 'model'"),
        ({"architecture": GPT2}, "architecture, which is for a model"),
    ],
)
def test_unknown_arguments_raise(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        conformance(GPT2, checks=[], **given)  # type: ignore[arg-type]


def test_config_fields_are_for_descriptions() -> None:
    with pytest.raises(InputError, match="hidden_size, which is for a description"):
        conformance(build_by_hand(Shape("gpt2")), hidden_size=24)
    with pytest.raises(InputError, match="no field 'hiden_size'"):
        build(GPT2, hiden_size=24)


@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_the_activation_of_experts_is_held(act: str) -> None:
    moe = MIXTRAL.block.mlp
    report = conformance(replace(MIXTRAL, block=replace(MIXTRAL.block, mlp=replace(moe, act=act))))
    (failed,) = report.failures
    assert failed.check == "the activation is as named"
    assert f"should be {act} of mlp.experts.0.hook_pre" in failed.detail


def test_what_stands_between_a_norm_and_a_mixture_is_found() -> None:
    torch.manual_seed(0)
    model = build(MIXTRAL).hf_model
    gate = torch.nn.Sequential(model.model.layers[0].post_attention_layernorm, torch.nn.SiLU())
    model.model.layers[0].post_attention_layernorm = gate
    norms = replace(MIXTRAL.block.norms, pre_mlp="post_attention_layernorm.0")
    block = replace(MIXTRAL.block, norms=norms)
    model.model.layers[1].post_attention_layernorm = torch.nn.Sequential(
        model.model.layers[1].post_attention_layernorm
    )
    report = conformance(model, architecture=replace(MIXTRAL, block=block))
    failed = {row.check: row.detail for row in report.failures}
    assert "blocks.0.mlp.hook_in should be ln2.hook_out" in failed["mixtures read what is before"]


def test_a_swap_of_k_and_v_is_named() -> None:
    qkv = replace(LLAMA.block.attn.qkv, k="v_proj", v="k_proj")
    attn = replace(LLAMA.block.attn, qkv=qkv)
    subject = build(replace(LLAMA, block=replace(LLAMA.block, attn=attn)))
    failed = [row.check for row in conformance(subject).failures]
    mutant = repair(subject, failed)
    assert mutant is not None
    assert mutant.change == "block.attn.qkv.k and v exchanged"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (replace(GPT2, dims=replace(GPT2.dims, heads=8)), "dims.heads of the description says 8"),
        (replace(GPT2, prefix="layers"), "names cannot begin with prefix='layers'"),
        (replace(GPT2, prefix="h.blocks.0.x"), "names cannot begin with prefix='h.blocks.0.x'"),
        (
            replace(
                GPT2,
                block=replace(
                    GPT2.block, norms=replace(GPT2.block.norms, post_attn="ln_1", pre_attn=None)
                ),
            ),
            "ran before attention's output projection",
        ),
        (
            replace(
                GPT2,
                block=replace(
                    GPT2.block,
                    attn=replace(GPT2.block.attn, qkv=FusedQKV("c_attn", layout="sharded")),
                ),
            ),
            "",
        ),
    ],
)
def test_failures_are_told_in_words_of_the_description(
    wrong: lensbridge.Architecture, words: str
) -> None:
    failures = conformance(wrong).failures
    assert failures
    assert words in failures[0].detail
    assert not any("Error:" in row.detail or "einsum" in row.detail for row in failures)


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
            "With one change it conforms: block.residual: 'parallel' -> 'sequential'.",
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
    assert "\nWith one change it conforms: block.residual: 'parallel' -> 'sequential'.\n" in out
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

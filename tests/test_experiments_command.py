"""`lensbridge run`: what it prints and writes is what `model.run` gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from command import CLEAN, CORRUPTED, run

import lensbridge
from lensbridge import Experiment
from lensbridge.experiments import ExperimentResult, LogitDiff
from lensbridge.interventions import Add, Zero


@pytest.fixture(scope="module")
def asked() -> Experiment:
    return Experiment(
        [CLEAN, CORRUPTED],
        points="resid_post",
        interventions=Add(("resid_post", 2), torch.ones(128)),
        metric=LogitDiff(" Paris", " Rome"),
        sweep={"early": Zero(("z", 0)), "late": [Zero(("z", 2)), Zero(("z", 3))]},
        generate={"max_new_tokens": 2, "do_sample": False},
    )


@pytest.fixture(scope="module")
def result(asked: Experiment) -> ExperimentResult:
    return lensbridge.load("demo").run(asked)


def test_what_is_printed_and_written_is_the_result(
    asked: Experiment, result: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "experiment.json", tmp_path / "result.safetensors"
    file.write_text(asked.to_json())
    told = run(capsys, "run", file, "demo", "--out", out, "--json").json
    assert told["metrics"]["metric"] == pytest.approx(result.metric.item(), abs=1e-6)
    assert told["sweep"]["values"] == pytest.approx(result.sweep.values.tolist(), abs=1e-6)
    assert told["sweep"]["axes"] == {"cell": ["early", "late"]}
    assert told["text"] == result.text
    assert told["kept"] == list(result.cache)
    written = ExperimentResult.load(out)
    assert torch.equal(written.logits, result.logits)
    ran = run(capsys, "run", file, "demo")
    assert ran.status == 0
    assert f"metric: {result.metric.item():.4f}\n" in ran.out
    assert f"metric of cell late: {result.sweep.values[1].item():.4f}\n" in ran.out
    assert "\n".join(result.text) in ran.out
    assert "4 activations were kept" in ran.err


def test_tensors_in_a_file_and_an_experiment_from_standard_input(
    asked: Experiment,
    result: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from io import StringIO

    text = asked.to_json(tmp_path / "tensors.safetensors")
    monkeypatch.setattr("sys.stdin", StringIO(text))
    ran = run(capsys, "run", "-", "demo", "--tensors", tmp_path / "tensors.safetensors", "--json")
    assert ran.json["metrics"]["metric"] == pytest.approx(result.metric.item(), abs=1e-6)


def test_what_is_wrong_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: Experiment
) -> None:
    file = tmp_path / "experiment.json"
    for text, message in (("{", "This text is not JSON"), ("{}", "This text is no experiment")):
        file.write_text(text)
        ran = run(capsys, "run", file, "demo")
        assert ran.status == 1
        assert message in ran.err
    file.write_text(asked.to_json())
    ran = run(capsys, "run", file, "demo", "--out", tmp_path / "none" / "x")
    assert (ran.status, "There is no folder" in ran.err) == (1, True)
    ran = run(capsys, "run", tmp_path / "nothing.json", "demo")
    assert (ran.status, "cannot be read" in ran.err) == (1, True)

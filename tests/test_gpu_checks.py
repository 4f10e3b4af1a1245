"""The checks for a GPU run on the CPU too, and notice what they are there to notice."""

from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_checks
from benchmarks.gpu_checks import CHECKS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_runs_on_the_cpu(name: str) -> None:
    (row,) = gpu.rows(gpu.place_of("cpu"), [name])
    assert row.verdict == ("not here" if name == "CUDA graphs" else "holds"), row.found
    assert row.found


def test_the_table_has_a_row_for_each_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(place: Any) -> str:
        raise gpu_checks.UnequalResultsError("z: off by 1.0")

    monkeypatch.setitem(CHECKS, "sweep", wrong)
    monkeypatch.setitem(CHECKS, "points", lambda place: "12 points")
    assert gpu.main(["--device", "cpu", "--only", "points", "sweep", "CUDA graphs"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert "a dry run" in out[0]
    assert [line.split()[0] for line in out[2:]] == ["check", "points", "sweep", "CUDA"]
    assert "UnequalResultsError: z: off by 1.0" in out[4]
    assert gpu.main(["--device", "cpu", "--only", "points"]) == 0


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == gpu.NO_GPU == 3
    (line,) = capsys.readouterr().out.splitlines()
    assert "no CUDA device" in line


BROKEN = {
    "points": "run_with_cache",
    "generation": "generate",
    "sweep": "run_with_hooks",
    "plan and memory": "plan",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_check_notices_a_lens_that_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = BROKEN[name]
    own = getattr(gpu_checks.lensbridge.LensModel, method)

    def worse(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = own(self, *args, **kwargs)
        if method == "plan":
            found.by_device["cpu"] += 1
            return found
        if isinstance(found, tuple):
            return found[0] + 1e-3, *found[1:]
        return found + 1

    monkeypatch.setattr(gpu_checks.lensbridge.LensModel, method, worse)
    (row,) = gpu.rows(gpu.place_of("cpu"), [name])
    assert row.verdict == "fails"
    assert "UnequalResultsError" in row.found

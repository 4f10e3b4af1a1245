"""The benchmarks run, have their rows, and refuse to compare unequal work. No timing here."""

from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as main
from benchmarks import checks, forwards, imports, loads, memory, specimens
from benchmarks.report import Row, as_markdown, as_text
from benchmarks.specimens import Shape, Specimen
from benchmarks.timing import Effort, Samples, Spread, interleave

ONCE = Effort(seconds=0, least=1)
TINY = Shape(layers=2, width=24, heads=3, vocab=64, batch=2, positions=8)
PLAN = main.Plan(
    (TINY, TINY),
    TINY,
    forward=ONCE,
    host=ONCE,
    load=ONCE,
    fresh=ONCE,
    lengths=(3, 4, 5),
    sweep=ONCE,
    harvest=ONCE,
)

WORK = [
    "forward, no hooks",
    "cache every resid_post",
    "cache every resid_post and pattern",
    "cache everything but derived, default kernel",
    "cache everything but derived, eager kernel",
    "cache everything (names_filter=None)",
    "zero one head's z",
    "peak memory, cache of every resid_post",
    "peak memory, cache of every q",
    "peak memory, cache of everything but derived",
]


@pytest.fixture
def tiny() -> Specimen:
    return specimens.gpt2(TINY)


def measured(group: str) -> list[Row]:
    return [row for _, row in main.measure(PLAN, [group])]


def test_sweep_rows_cover_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rival.installed", lambda: False)
    rows = measured("sweep")
    for model in ("GPT-2", "Llama"):
        works = {row.work for row in rows if row.model == model and row.measured is not None}
        assert len(works) == 7
        assert {f"patch resid_pre, layer x pos, {n} tokens" for n in PLAN.lengths} <= works
    memory = [row for row in rows if row.against == "the budget"]
    assert [row.model for row in memory] == ["GPT-2", "Llama"]
    assert all(0.01 < row.measured.middle < 1 for row in memory if row.measured)


def test_attribution_rows_cover_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rival.installed", lambda: False)
    rows = [row for row in measured("attribution") if row.measured is not None]
    assert [(row.model, row.budget) for row in rows] == [
        ("GPT-2", 1.3), ("GPT-2", 1.3), ("Llama", 1.3), ("Llama", 1.3),
    ]  # fmt: skip


def test_forward_rows_cover_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Specimen, "bridge", None)
    rows = measured("forward")
    for model in ("GPT-2", "Llama"):
        assert list(dict.fromkeys(row.work for row in rows if row.model == model)) == WORK
    absent = [row for row in rows if "TransformerLens" in row.against]
    assert absent
    assert all(row.cells()[3] == "not installed" and not row.verdict for row in absent)
    assert all(row.measured for row in rows if row not in absent)


def test_harvest_rows_have_a_budget_beside_loops_that_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harvest_loops.find_spec", lambda _: None)
    rows = measured("harvest")
    assert [(row.against, row.budget) for row in rows] == [
        ("a loop that stops", 1 / 0.98),
        ("a loop that stops, use_cache=False", 1 / 0.98),
        ("a loop that does not stop", None),
    ]
    assert all(row.measured for row in rows)


def test_host_rows_are_in_microseconds() -> None:
    rows = measured("host")
    reads = [row for row in rows if row.work.startswith("read one point")]
    assert [(row.unit, row.against) for row in reads] == [
        ("us", "HF forward"),
        ("x", "one PyTorch hook by hand"),
    ] * 2
    assert [row.budget for row in reads if row.unit == "us"] == [10.0, None]


def test_load_rows(tmp_path: Path) -> None:
    rows = loads.time_rows(specimens.llama(TINY), tmp_path, ONCE)
    assert [row.work for row in rows] == ["load from a folder"]
    if memory.CLEAR.exists():
        assert memory.peak_of_load("lensbridge", tmp_path) >= 0


def test_import_is_timed_in_a_fresh_process() -> None:
    assert imports.seconds("import lensbridge") > 0


def test_unequal_work_is_refused(tiny: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    native = tiny.hf.forward
    tiny.lens(tiny.ids)

    def other(*args: object, **kwargs: object) -> object:
        out = native(*args, **kwargs)
        out.logits = out.logits + 1e-6 * (kwargs.get("output_hidden_states") is True)
        return out

    monkeypatch.setattr(tiny.hf, "forward", other)
    with torch.no_grad(), pytest.raises(checks.UnequalResultsError, match="caching resid_post"):
        forwards.residuals(tiny)


def test_caches_must_share_their_points() -> None:
    one = {"a": torch.zeros(2), "b": torch.full((2,), -torch.inf)}
    checks.require_same_cache(one, {"a": torch.zeros(2), "b": torch.ones(2)}, least=2)
    with pytest.raises(checks.UnequalResultsError, match="only 1 of 2"):
        checks.require_same_cache(one, {"a": torch.zeros(2)}, least=2)
    with pytest.raises(checks.UnequalResultsError, match=r"a: differs by 1\.0e\+00"):
        checks.require_same_cache(one, {"a": torch.ones(2)}, least=1)
    with pytest.raises(checks.UnequalResultsError, match=r"\(2,\) and \(3,\)"):
        checks.require_same_cache(one, {"a": torch.zeros(3)}, least=1)


def test_peak_memory_is_exact() -> None:
    assert memory.peak_allocated(lambda: torch.empty(1000, dtype=torch.uint8)) in range(1000, 1100)


def test_ratios_are_taken_within_a_round() -> None:
    samples = Samples({"a": [2.0, 20.0, 2.0], "b": [1.0, 10.0, 1.0]})
    assert samples.ratio("a", "b") == Spread(2.0, 2.0, 2.0)
    assert samples.microseconds_each("a", "b", 10) == pytest.approx([1e5, 1e6, 1e5])


def test_every_contender_runs_once_a_round() -> None:
    calls: list[str] = []
    work = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    interleave(work, Effort(seconds=0, least=4))
    assert {name: calls.count(name) for name in "abc"} == dict.fromkeys("abc", 5)  # one to warm up


@pytest.mark.parametrize(
    ("spread", "verdict"),
    [
        (Spread(0.9, 1.0, 1.1), "met"),
        (Spread(0.9, 1.1, 1.2), "within noise"),
        (Spread(1.05, 1.1, 1.2), "missed"),
    ],
)
def test_verdict_allows_for_noise(spread: Spread, verdict: str) -> None:
    assert Row("work", "model", "other", spread, 1.0).verdict == verdict


def test_tables() -> None:
    row = Row("work", "model", "other", Spread(1.0, 1.234, 2.0), 1.03)
    assert "| work | model | other | 1.23x (1.00 to 2.00) | 1.03x | within noise |" in as_markdown(
        [row]
    )
    assert len(set(map(len, as_text([row, row]).splitlines()[1:]))) == 1


def test_groups_that_are_not_measured_stay_as_they_are_written() -> None:
    one = Row("work", "model", "other", Spread(1.0, 1.234, 2.0))
    two = Row("other work", "model", "other", Spread(2.0, 2.0, 2.0))
    first = main.document({"forward": [one], "host": [one]}, PLAN)
    assert first.count("1.23x") == 2
    again = main.document({"host": [two], "import": [two]}, PLAN, first)
    assert again.count("1.23x") == 1
    assert again.count("2.00x (2.00 to 2.00)") == 2
    assert again == main.document({}, PLAN, again)
    titles = [line for line in again.splitlines() if line.startswith("## ")]
    assert titles == ["## Forward passes and caches", "## The cost of a hook", "## Importing"]


def test_command_line_lists_its_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    shown = capsys.readouterr().out
    assert all(group in shown for group in main.GROUPS)


def test_only_full_measurements_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--quick", "--write"])
    assert "measured in full" in capsys.readouterr().err

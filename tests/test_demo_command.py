"""`lensbridge demo`, the command: its page shows what the analyses found and fetches nothing."""

import contextlib
import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

import lensbridge
from lensbridge.cli import main
from lensbridge.demo import text, workflows

TITLES = [
    "Activation patching: where is the city decided?",
    "Direct logit attribution: which head names the receiver?",
    "Induction: which heads continue a repeated sequence?",
]


@dataclass(frozen=True)
class Made:
    """What the command left behind."""

    status: int
    said: str
    page: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("demo") / "report.html"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["demo", "--out", str(out)])
    return Made(status, said.getvalue(), out.read_text(encoding="utf-8"))


def test_the_command_reports_what_it_did(made: Made) -> None:
    assert made.status == 0
    assert [f"[{i}/4]" in made.said for i in (1, 2, 3, 4)] == [True] * 4
    assert "report.html" in made.said
    assert "all terms sum to the logit difference within" in made.said


def test_the_page_is_well_formed_with_its_three_headings(made: Made) -> None:
    root = ElementTree.fromstring(made.page.removeprefix("<!DOCTYPE html>"))
    assert [heading.text for heading in root.iter("h2")] == TITLES
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 9


def test_the_page_fetches_nothing(made: Made) -> None:
    fetched = r"https?:|src=|href=\"(?!data:)|url\(|@import|<script|<link|<iframe|<img"
    names = r"xmlns(:xlink)?=\"http://www.w3.org/[^\"]*\""  # of SVG: no addresses
    assert re.findall(fetched, re.sub(names, "", made.page)) == []


def test_the_page_shows_the_numbers(made: Made) -> None:
    model = lensbridge.load("demo")
    prompts = [text.john_and_mary(), *text.held_out_handovers(7)]
    patching = workflows.patch_positions(model, text.eiffel_tower())
    attribution = workflows.attribute_heads(model, prompts)
    induction = workflows.score_induction(model)
    root = ElementTree.fromstring(made.page.removeprefix("<!DOCTYPE html>"))
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    last = patching.grids["attn_out"][3, -1]
    assert f"patched position ·of, layer 3: {last:.4g} fraction restored" in titles
    layer, head = attribution.top
    assert f"layer {layer}, head {head}: {attribution.drops[layer, head]:.4g} logits" in titles
    layer, head = induction.top
    score = f"{induction.scores[layer, head]:.4g} attention on the induction stripe"
    assert f"layer {layer}, head {head}: {score}" in titles
    words = "".join(root.itertext())
    assert "The ablation confirms the attribution" in words
    assert f"{induction.halves[0]:.2f} nats" in words


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "missing" / "report.html")]) == 1
    said = capsys.readouterr()
    assert "There is no folder" in said.err
    assert said.out == ""


def test_the_version_comes_without_torch() -> None:
    script = (
        "import sys\n"
        "from lensbridge.cli import main\n"
        "try:\n    main(['--version'])\n"
        "finally:\n    print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"lensbridge {lensbridge.__version__}\n[]\n"


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dmeo"]) == 2
    assert "'dmeo'. Did you mean 'demo'?" in capsys.readouterr().err

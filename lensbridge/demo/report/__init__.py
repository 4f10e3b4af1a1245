"""The demo's results as findings for the terminal and as an HTML page."""

from dataclasses import dataclass

from lensbridge.demo.report import attribution, induction, patching
from lensbridge.demo.workflows import Attribution, Induction, Patching
from lensbridge.viz import report
from lensbridge.viz.report import Finding


@dataclass(frozen=True)
class Results:
    """The three analyses, and what they were run on.

    Args:
        about: the model in a sentence.
        closing: versions and time in a sentence.
    """

    about: str
    closing: str
    patching: Patching
    attribution: Attribution
    induction: Induction


def render(results: Results) -> str:
    """The page."""
    sections = [
        patching.section(results.patching),
        attribution.section(results.attribution),
        induction.section(results.induction),
    ]
    found = findings(results)
    return report.page("lensbridge demo", results.about, found, sections, results.closing)


def findings(results: Results) -> list[Finding]:
    """One finding for each analysis."""
    return [
        patching.finding(results.patching),
        attribution.finding(results.attribution),
        induction.finding(results.induction),
    ]

"""What a case gets, and the list of cases."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison.families import FAMILIES, Family, build, tokens
from benchmarks.comparison.outcomes import (
    Outcome,
    same,
    with_notes,
)
from benchmarks.comparison.tools.base import Opened, Tool

HEAD = 1
SEQUENTIAL = tuple(name for name in FAMILIES if name != "neox")


@dataclass
class Bench:
    """One tool on a fresh model of one family."""

    tool: Tool
    family: Family
    dtype: torch.dtype = torch.float32

    @cached_property
    def model(self) -> Any:
        """The model that the tool gets."""
        return build(self.family.name, dtype=self.dtype)

    @cached_property
    def opened(self) -> Opened:
        """The model as the tool opens it."""
        return self.tool.open(self.model, self.family)

    def bare(self) -> Any:
        """A copy of the model that no tool has seen."""
        return build(self.family.name, dtype=self.dtype)

    @cached_property
    def ids(self) -> Tensor:
        """`[2, 7]`"""
        return tokens()


@dataclass(frozen=True)
class Case:
    """One question.

    Args:
        key: for the record.
        title: the line of the table.
        run: asks a tool on one family.
        families: on which it is asked.
    """

    key: str
    title: str
    run: Callable[[Bench], Outcome]
    families: tuple[str, ...] = tuple(FAMILIES)


CASES: list[Case] = []


def case(title: str, families: tuple[str, ...] = tuple(FAMILIES)) -> Callable[[Any], Any]:
    """Put a function on the list."""

    def add(run: Callable[[Bench], Outcome]) -> Callable[[Bench], Outcome]:
        CASES.append(Case(run.__name__, title, run, families))
        return run

    return add


def as_bare(bench: Bench, logits: Tensor, notes: bool = False) -> Outcome:
    """Against the bare model as it was, and then against it with eager attention."""
    outcome = same(logits, bench.bare()(bench.ids).logits)
    eager = build(bench.family.name, "eager", bench.dtype)(bench.ids).logits
    if outcome.kind != "works" and torch.equal(logits, eager):
        off = outcome.note.rpartition("off by ")[2]
        return Outcome(
            "caveat", f"as with eager attention, to which the model is switched: off by {off}"
        )
    return noted(bench, outcome) if notes else outcome


def noted(bench: Bench, outcome: Outcome) -> Outcome:
    return with_notes(outcome, bench.opened.notes)

"""Mistakes of the user."""

from collections.abc import Callable

from benchmarks.comparison.cases.bench import Bench, case
from benchmarks.comparison.outcomes import (
    Outcome,
)


def _loud(run: Callable[[], object]) -> Outcome:
    try:
        run()
    except Exception as error:
        told = str(error).lower()
        named = any(word in told for word in ("pots", "outptu", "z'", ".0z", "0z"))
        return (
            Outcome("works")
            if named
            else Outcome("caveat", "an error that does not say which name")
        )
    return Outcome("wrong", "no error")


@case("a misspelt name raises an error that says so")
def misspelt(bench: Bench) -> Outcome:
    bench.opened.logits(bench.ids)
    return _loud(lambda: bench.opened.misspell(bench.ids))


@case("a misspelt name beside a right one raises too")
def misspelt_among(bench: Bench) -> Outcome:
    bench.opened.logits(bench.ids)
    return _loud(lambda: bench.opened.misspell_among(bench.ids))

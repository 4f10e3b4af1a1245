"""What one reading hook costs the host, on a model so small that little else is there to see."""

from collections.abc import Iterator

from benchmarks.checks import require_equal
from benchmarks.forwards import native_names
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, interleave

BUDGET = 10.0  # microseconds


def rows(one: Specimen, effort: Effort) -> Iterator[Row]:
    """Time with N points being read, less time with none, for each point."""
    lens, hf, ids = one.lens, one.hf, one.ids
    inside = [n for n in native_names(lens) if lens.explain(n).where.startswith("kernel")]
    at_modules = [name for name in native_names(lens) if name not in inside]
    reads = {"at module boundaries": at_modules, "inside attention": inside}
    for names in reads.values():
        require_equal(lens.run_with_cache(ids, names)[0], hf(ids).logits, "logits while reading")
    work = {
        where: (lambda names=names: lens.run_with_cache(ids, names))
        for where, names in reads.items()
    }
    samples = interleave({"bare": lambda: hf(ids), **work}, effort)
    for where, names in reads.items():
        each = samples.microseconds_each(where, "bare", len(names))
        budget = BUDGET if names is at_modules else None
        yield Row(f"read one point {where}", one.name, "HF forward", each, budget, "us")
        what = f"read {len(names)} points {where}"
        yield Row(what, one.name, "HF forward", samples.ratio(where, "bare"))

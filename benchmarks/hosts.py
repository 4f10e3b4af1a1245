"""What one reading hook costs the host, on a model so small that little else is there to see.

Microseconds depend on the machine, so a hook written by hand is measured beside it: no library
that reads through PyTorch's hooks can be cheaper than that.
"""

from collections.abc import Iterator
from statistics import median

from benchmarks.checks import require_equal
from benchmarks.forwards import native_names, raw_cache
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, Spread, Work, interleave

BUDGET = 10.0  # microseconds


def rows(one: Specimen, effort: Effort) -> Iterator[Row]:
    """Time with N points being read, less time with none, for each point."""
    lens, hf, ids = one.lens, one.hf, one.ids
    inside = [n for n in native_names(lens) if lens.explain(n).where.startswith("kernel")]
    reads = {
        "at module boundaries": [name for name in native_names(lens) if name not in inside],
        "inside attention": inside,
    }
    for names in reads.values():
        require_equal(lens.run_with_cache(ids, names)[0], hf(ids).logits, "logits while reading")

    def reading(names: list[str]) -> Work:
        return lambda: lens.run_with_cache(ids, names)

    raw, hooks = raw_cache(hf, ids)
    work = {where: reading(names) for where, names in reads.items()}
    samples = interleave({"bare": lambda: hf(ids), "raw": raw, **work}, effort)
    by_hand = samples.microseconds_each("raw", "bare", hooks)
    yield Row("one PyTorch hook by hand", one.name, "HF forward", Spread.of(by_hand), unit="us")
    for where, names in reads.items():
        each = samples.microseconds_each(where, "bare", len(names))
        budget = BUDGET if names is not inside else None
        work_done = f"read one point {where}"
        yield Row(work_done, one.name, "HF forward", Spread.of(each), budget, "us")
        multiple = Spread.of(here / median(by_hand) for here in each)
        yield Row(work_done, one.name, "one PyTorch hook by hand", multiple)
        ratio = samples.ratio(where, "bare")
        yield Row(f"read {len(names)} points {where}", one.name, "HF forward", ratio)

"""Peak memory: of a cache or a sweep, by the allocations that torch reports; of a load, by the
kernel's count.

A cache and a sweep: `torch.profiler` reports every allocation of a tensor to the byte, so nothing
else in the process disturbs the peak.

A load: it maps files, which torch does not allocate and which take memory when they are first
read, so the first forward pass counts too. A fresh process notes its resident memory, resets the
kernel's peak (`/proc/self/clear_refs`), loads, runs, and reads the peak (`VmHWM`).
`resource.getrusage` would not do: a child starts with its parent's peak.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.forwards import native_names
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, Spread, Work
from lensbridge import patching
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.memory import position_bytes

ROOT = Path(__file__).resolve().parents[1]
_STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_allocated(work: Work) -> int:
    """The most bytes in tensors at one time that a piece of work allocates."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(int(e["args"]["Total Allocated"]) for e in events if e["name"] == "[memory]")


def cache_rows(one: Specimen) -> Iterator[Row]:
    """Peak with a cache, less the peak without, as a multiple of the bytes asked for."""
    lens, hf, ids = one.lens, one.hf, one.ids
    bare = peak_allocated(lambda: hf(ids))
    asked = {
        "every resid_post": "resid_post",
        "every q": "q",
        "everything but derived": native_names(lens),
    }
    for what, names in asked.items():
        size = lens.run_with_cache(ids, names)[1].nbytes  # what shares memory counts once

        def read(names: Any = names) -> object:
            return lens.run_with_cache(ids, names)

        more = (peak_allocated(read) - bare) / size
        spread = Spread(more, more, more)
        yield Row(f"peak memory, cache of {what}", one.name, "bytes asked for", spread, 1.05)


def sweep_rows(one: Specimen, max_batch_tokens: int) -> Iterator[Row]:
    """Peak of a sweep as a multiple of what its batches may take."""
    lens, ids = one.lens, one.ids
    _, cache = lens.run_with_cache(ids.flip(1), "resid_pre")
    room = max_batch_tokens * position_bytes(BaseRun.run(lens, ids, []))

    def sweep() -> object:
        return patching.get_act_patch_resid_pre(
            lens, ids, cache, lambda logits: logits[0, -1, 0], max_batch_tokens=max_batch_tokens
        )

    more = peak_allocated(sweep) / room
    work = f"peak memory, patch resid_pre, {max_batch_tokens} positions in a batch"
    yield Row(work, one.name, "the budget", Spread(more, more, more), 1.0)


def load_rows(folder: Path, model: str, effort: Effort) -> Iterator[Row]:
    """Peak memory of a load beside HuggingFace's, each in a fresh process."""
    work, other = "peak memory, load and first forward", "HF from_pretrained"
    if not CLEAR.exists():
        yield Row(work, model, other, None, 1.0, missing="measured on Linux only")
        return
    pairs = [(_child("lensbridge", folder), _child("hf", folder)) for _ in range(effort.least)]
    yield Row(work, model, other, Spread.of(ours / theirs for ours, theirs in pairs), 1.0)


def _child(which: str, folder: Path) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", which, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_of_load(which: str, folder: Path) -> int:
    """Bytes of resident memory that a load and a forward pass take at their peak, imports apart."""
    load = loader(which)
    before = _status("VmRSS")
    CLEAR.write_text(_RESET_PEAK)
    model = load(folder)
    with torch.no_grad():
        model(torch.zeros(1, 8, dtype=torch.long))
    return _status("VmHWM") - before


def loader(which: str) -> Callable[[Path], Any]:
    """A way to load a folder, with everything imported that it needs."""
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM

    import lensbridge.model
    from lensbridge.plugins import registry

    registry()  # the adapters too
    loaders: dict[str, Callable[[Path], Any]] = {
        "hf": AutoModelForCausalLM.from_pretrained,
        "lensbridge": lensbridge.load,
    }
    return loaders[which]


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(peak_of_load(sys.argv[1], Path(sys.argv[2])))

"""Peak memory of a cache, in a fresh process for each tool."""

import re
from pathlib import Path

import torch

from benchmarks.comparison import runs, workload

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SHAPE = (8, 128)


def peak(tool: str, work: str) -> int | None:
    """Bytes above what was resident before; None off Linux or where there is no such call."""
    contender = runs.CONTENDERS[tool]()
    run = getattr(contender, work, None)
    if run is None or not _CLEAR.exists():
        return None
    with torch.no_grad():
        run()  # what is made once
        contender.clean = torch.randint(0, 50257, SHAPE)
        if tool == "pyvene":
            contender.clean = {"input_ids": contender.clean}
            workload.TOKENS = SHAPE[1]
            vars(contender).pop("_collecting", None)
        before = _status("VmRSS")
        _CLEAR.write_text("5")
        run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024

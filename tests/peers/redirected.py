"""Runs a program for TransformerLens twice: with TransformerLens, and redirected to lensbridge."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLIENTS = Path(__file__).parent / "clients"

_REDIRECTED = """
import runpy, sys
import lensbridge.compat
lensbridge.compat.install()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}


def results_of(client: str, weights: dict[str, Tensor], folder: Path) -> tuple[Any, Any]:
    """What a client saves under lensbridge, and what it saves under TransformerLens.

    Args:
        client: the name of its file in `clients`.
        weights: the state that it loads.
        folder: for files.
    """
    torch.save(weights, folder / "weights.pt")
    start = {"ours": ["-c", _REDIRECTED], "theirs": []}
    for side, before in start.items():
        files = [str(folder / "weights.pt"), str(folder / f"{side}.pt")]
        done = subprocess.run(
            [sys.executable, *before, str(CLIENTS / f"{client}.py"), *files],
            env={**os.environ, **_QUIET},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{side}: {done.stderr[-4000:]}"
    return torch.load(folder / "ours.pt"), torch.load(folder / "theirs.pt")


def require_equal(ours: dict[str, Any], theirs: dict[str, Any], rounding: float = 1e-5) -> None:
    """Compare the results of two runs of one client."""
    assert list(ours) == list(theirs)
    assert any(isinstance(one, Tensor) for one in theirs.values())
    for name, expected in theirs.items():
        if isinstance(expected, Tensor):
            torch.testing.assert_close(
                ours[name],
                expected,
                atol=rounding,
                rtol=rounding,
                msg=lambda m, n=name: f"{n}: {m}",
            )
        else:
            assert ours[name] == expected, name

"""vLLM's usual way to run: the model in another process, and a part of it in each of two."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

CODE = """
import json, os, sys
import torch
import lensbridge
from lensbridge.errors import AbsentPointError, LensbridgeError
from lensbridge.interventions import Add, Zero
from vllm import LLM

def main():
    folder, ranks = sys.argv[1], int(sys.argv[2])
    texts = ["The Eiffel Tower is in the city of", "Paris is"]
    llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64,
              disable_log_stats=True, tensor_parallel_size=ranks)
    lens = lensbridge.load_vllm(llm)
    hf = lensbridge.load(folder, dtype="float32", attn_implementation="eager")
    steer = Add(("resid_post", 0), torch.randn(128, generator=torch.Generator().manual_seed(0)))
    told = {"points": len(lens.hook_names)}
    logits, cache = lens.run_with_cache(texts, interventions=[[steer], None])
    for row, edits in enumerate([[steer], []]):
        count = hf.to_tokens(texts[row]).shape[1]
        with hf.intervene(edits):
            wanted, other = hf.run_with_cache(texts[row])
        told[f"logits {row}"] = (logits[row, :count] - wanted[0]).abs().max().item()
        told[f"cache {row}"] = max(
            (cache[name][row, :count] - other[name][0]).abs().max().item() for name in cache
        )
    inner = [Zero(("z", 0), heads=3), Add(("q", 1), torch.ones(32)),
             Add(("rot_k", 1), torch.ones(32)),
             Add(("post", 0), torch.ones(96)), Add(("pre", 1), torch.ones(96)),
             Add(("result", 0), torch.ones(128)), Add(("v_input", 1), torch.ones(128))]
    for number, edit in enumerate(inner):
        wanted = hf.run_with_interventions(texts[0], edit)
        found = lens.run_with_interventions(texts[0], edit)
        told[f"logits edited {number}"] = (found - wanted).abs().max().item()
    try:
        lens.run_with_interventions(texts[0], Zero(("z", 0), heads=9))
    except LensbridgeError as error:
        told["refused"] = str(error)
    said = dict(max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
    told["text"] = lens.generate(texts[1], **said) == hf.generate(texts[1], **said)
    try:
        told["weight"] = torch.equal(lens.W_Q[1], hf.W_Q[1])
    except LensbridgeError as error:
        told["weight"] = str(error)
    print("TOLD " + json.dumps(told), flush=True)

if __name__ == "__main__":
    main()
"""


def told_by(folder: Path, tmp_path: Path, ranks: int) -> dict[str, object]:
    """What a program says that runs the model in other processes."""
    (tmp_path / "program.py").write_text(CODE, encoding="utf-8")
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", folder, str(ranks)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = [one for one in done.stdout.splitlines() if one.startswith("TOLD ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, object] = json.loads(lines[-1].removeprefix("TOLD "))
    return found


def close(told: dict[str, object]) -> bool:
    numbers = [one for name, one in told.items() if name.startswith(("logits", "cache"))]
    return len(numbers) == 11 and all(isinstance(one, float) and one < 1e-5 for one in numbers)


def test_another_process(folder: Callable[[str], Path], tmp_path: Path) -> None:
    told = told_by(folder("Llama"), tmp_path, 1)
    assert close(told), told
    assert "head 9" in str(told["refused"])
    assert told["text"] is True
    assert told["weight"] is True


def test_a_part_in_each_of_two(folder: Callable[[str], Path], tmp_path: Path) -> None:
    told = told_by(folder("Llama"), tmp_path, 2)
    assert close(told), told
    assert told["text"] is True
    assert told["weight"] is True

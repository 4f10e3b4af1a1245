"""The template of an adapter package installs, and its own tests pass on what is installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import __version__ as version

TEMPLATE = Path(__file__).parent.parent / "examples" / "adapter-template"


def run(*command: str, cwd: Path, **env: str) -> str:
    """Run Python without input or network; what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_template_installs_and_its_tests_pass(tmp_path: Path) -> None:
    site, source = tmp_path / "site", tmp_path / "source"
    shutil.copytree(TEMPLATE, source, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    target = ("--target", str(site), str(source))
    run("-m", "pip", "install", "-q", *offline, *target, cwd=tmp_path)
    shutil.rmtree(source / "lensbridge_tinystack")  # what is tested is what was installed
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    options = ("-q", "-p", "no:cacheprovider", "--conformance-report", "conformance.json")
    printed = run("-m", "pytest", *options, cwd=source, PYTHONPATH=path)
    verdict = printed.splitlines()[-1]
    assert "failed" not in verdict
    assert int(verdict.partition(" passed")[0]) > 100, verdict
    told = json.loads((source / "conformance.json").read_text())
    assert (told["passed"], told["models"]) == (True, ["TinystackForCausalLM"])
    assert told["counts"]["passed"] > 100
    assert told["message"] == f"{told['counts']['passed']} checks, transformers {version}"
    command = ("-m", "lensbridge", "adapters", "tinystack", "--check")
    printed = run(*command, cwd=tmp_path, PYTHONPATH=path)
    assert printed.startswith("'tinystack' (from tinystack = lensbridge_tinystack): conforms: ")

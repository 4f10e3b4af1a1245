"""Some checks on a second device, in a process of their own; `make second-device` runs all."""

import os
import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).parent / "second_device" / "checks.py"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")


def test_a_model_on_two_devices_gives_what_it_gives_on_one() -> None:
    ran = subprocess.run(
        [*PYTEST, str(CHECKS), "-k", "refuses or limit or llama-two and not patched"],
        cwd=CHECKS.parents[2],
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr

"""The conformance kit: checks by behaviour that a model is what its description says.

from lensbridge.testing import conformance
print(conformance(MY_ARCHITECTURE))

For a test run of one's own, three lines in a `conftest.py`:

pytest_plugins = ["lensbridge.testing.plugin"]
from my_adapters import ARCHITECTURES
LENSBRIDGE_ARCHITECTURES = ARCHITECTURES
"""

from lensbridge.errors import ConformanceError
from lensbridge.testing.check import Check, Row, run_check
from lensbridge.testing.checks import CHECKS, SOUND
from lensbridge.testing.conformance import CORE, EVERY, Report, Variant, build, conformance
from lensbridge.testing.subject import Subject
from lensbridge.testing.tiny import tiny_config, tiny_model

__all__ = [
    "CHECKS",
    "CORE",
    "EVERY",
    "SOUND",
    "Check",
    "ConformanceError",
    "Report",
    "Row",
    "Subject",
    "Variant",
    "build",
    "conformance",
    "run_check",
    "tiny_config",
    "tiny_model",
]

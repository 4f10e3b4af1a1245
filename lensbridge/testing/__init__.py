"""The conformance kit: checks by behaviour that a model is what its description says.

from lensbridge.testing import conformance
print(conformance(MY_ARCHITECTURE))

To run the checks in a test suite of your own, put three lines in a `conftest.py`:

pytest_plugins = ["lensbridge.testing.plugin"]
from my_adapters import ARCHITECTURES
LENSBRIDGE_ARCHITECTURES = ARCHITECTURES
"""

from lensbridge.conformance.building import CORE, EVERY, Variant, build
from lensbridge.conformance.check import Check, Row, run_check
from lensbridge.conformance.checks import CHECKS, SOUND
from lensbridge.conformance.kit import conformance
from lensbridge.conformance.report import Report
from lensbridge.conformance.subject import Subject
from lensbridge.conformance.tiny import tiny_config, tiny_model
from lensbridge.errors import ConformanceError

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

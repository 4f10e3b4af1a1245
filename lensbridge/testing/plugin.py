"""The conformance checks as a pytest plugin: a test for each check, variant and class.

Three lines in the `conftest.py` at the top of a test suite:

pytest_plugins = ["lensbridge.testing.plugin"]
from my_adapters import ARCHITECTURES
LENSBRIDGE_ARCHITECTURES = ARCHITECTURES

Add `LENSBRIDGE_VARIANTS = CORE` to test float32 with the default attention kernel only.
`pytest --conformance-report FILE` also writes what was found as JSON, from which a badge is drawn.

PYTEST_DONT_REWRITE
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from lensbridge.conformance.building import EVERY, UNFIT, Variant, build, distinct_classes
from lensbridge.conformance.check import Check, Row, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.mutation import Mutant
from lensbridge.conformance.record import prepare, record, write
from lensbridge.conformance.repair import conforms_with, repair, suspects
from lensbridge.conformance.subject import Subject
from lensbridge.errors import InputError, LensbridgeError
from lensbridge.spec import Architecture

_ROW = "lensbridge row"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option for the file."""
    group = parser.getgroup("lensbridge")
    group.addoption(
        "--conformance-report", metavar="FILE", help="write the result of the kit as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect what was found, in the process that writes the file."""
    file = config.getoption("--conformance-report", None)
    if file is not None and not hasattr(config, "workerinput"):
        try:
            prepare(Path(str(file)))
        except InputError as error:
            raise pytest.UsageError(str(error)) from error
        config.pluginmanager.register(Recorder(Path(str(file))))


class Recorder:
    """Collects rows and writes their record."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[Row] = []
        self.left: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note every check before some are deselected."""
        self.left = {item.nodeid for item in items if isinstance(item, CheckItem)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the row of a check that ran."""
        if report.when == "call":
            self.left.discard(report.nodeid)
            found: list[Any] = [row for name, row in report.user_properties if name == _ROW]
            self.rows += [Row(**row) for row in found]

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        write(self.file, record(self.rows, left_out=len(self.left)))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "ConformanceFile | None":
    """Collect a `conftest.py` that names architectures."""
    module = parent.config.pluginmanager.get_plugin(str(file_path))
    if module is None or "LENSBRIDGE_ARCHITECTURES" not in vars(module):
        return None
    found: ConformanceFile = ConformanceFile.from_parent(parent, path=file_path)
    found.architectures = tuple(vars(module)["LENSBRIDGE_ARCHITECTURES"])
    found.variants = tuple(vars(module).get("LENSBRIDGE_VARIANTS", EVERY))
    return found


class Holder:
    """One tiny model, built when the first of its checks runs."""

    def __init__(self, architecture: Architecture, class_name: str, variant: Variant) -> None:
        self.architecture = architecture
        self.class_name = class_name
        self.variant = variant
        self._repaired: tuple[Mutant | None] | None = None
        self._error: LensbridgeError | None = None

    @cached_property
    def subject(self) -> Subject:
        """The model with its description.

        Raises:
            LensbridgeError: the description does not fit the model.
            NotApplicable: the model does not run in this variant.
        """
        if self._error is not None:
            raise self._error
        try:
            return build(self.architecture, self.class_name, variant=self.variant)
        except LensbridgeError as error:
            self._error = error
            raise

    def unfit(self, error: LensbridgeError) -> Row:
        """The row of a model that its description does not fit."""
        return Row(UNFIT, self.class_name, str(self.variant), "failed", str(error))

    def advice(self, check: Check) -> str:
        """What the check is about, and the change with which the model conforms, if known."""
        if self._error is not None:
            return ""
        if self._repaired is None:
            self._repaired = (repair(self.subject, [check.name]),)
        (mutant,) = self._repaired
        told = suspects([check.name], mutant)
        return told if mutant is None else f"{told}\n{conforms_with(mutant)}"

    @property
    def name(self) -> str:
        """The first part of the names of its tests."""
        return f"{self.architecture.name}-{self.class_name}-{self.variant}".replace(", ", "-")


class ConformanceFile(pytest.File):
    """A conftest that names architectures."""

    architectures: tuple[Architecture, ...] = ()
    variants: tuple[Variant, ...] = EVERY

    def collect(self) -> Iterable["CheckItem"]:
        """One test for each check on each tiny model."""
        for holder in self._holders():
            for check in CHECKS:
                item: CheckItem = CheckItem.from_parent(self, name=f"{holder.name}-{check.name}")
                item.check, item.holder = check, holder
                yield item

    def _holders(self) -> Iterator[Holder]:
        for architecture in self.architectures:
            for class_name in distinct_classes(architecture):
                for variant in self.variants:
                    yield Holder(architecture, class_name, variant)


class CheckItem(pytest.Item):
    """One check on one tiny model."""

    check: Check
    holder: Holder

    def runtest(self) -> None:
        """Run the check.

        Raises:
            ConformanceError: it failed.
        """
        try:
            subject = self.holder.subject
        except NotApplicable as why:
            pytest.skip(str(why))
        except LensbridgeError as error:
            self.user_properties.append((_ROW, asdict(self.holder.unfit(error))))
            raise
        row = run_check(self.check, subject)
        self.user_properties.append((_ROW, asdict(row)))
        if row.status == "skipped":
            pytest.skip(row.detail)
        row.require()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The message without the traceback, which is inside the checks."""
        return (
            f"{self.holder.name} does not conform: {self.check.name}\n{excinfo.value}\n"
            f"{self.holder.advice(self.check)}"
        )

    def reportinfo(self) -> tuple[Path, None, str]:
        """The file that it comes from, for listings."""
        return self.path, None, self.name

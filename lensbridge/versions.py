"""The versions of transformers and torch that lensbridge was tested with."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

__all__ = ["TESTED", "Tested", "installed"]


@dataclass(frozen=True)
class Tested:
    """The oldest and the newest release of a package that lensbridge was tested with."""

    package: str
    oldest: str
    newest: str

    def holds(self, release: str) -> bool:
        """Whether a release lies in the range. Patch releases of the newest one do.

        Example:
            >>> Tested("torch", "2.6", "2.15").holds("2.15.1+cu128")
            True
            >>> Tested("torch", "2.6", "2.15").holds("2.16.0")
            False
        """
        return _numbers(self.oldest) <= _numbers(release) <= _numbers(self.newest)

    def __str__(self) -> str:
        return f"tested with {self.oldest} to {self.newest}"


TESTED = (Tested("transformers", "5.14", "5.24"), Tested("torch", "2.6", "2.15"))


def installed(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])

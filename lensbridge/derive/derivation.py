"""Derivation: the result of `derive`."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lensbridge.spec import Architecture

_MOST = 3
"""The number of formulas that a remark lists."""


@dataclass(frozen=True)
class Derivation:
    """What could be established about a model.

    Args:
        architecture: the description; None if not even a list of layers was found.
        established: the parts that were found, in words.
        missing: which part could not be established, and why.
        alternatives: for a formula of the description, the others that have its value in this
            config.
        unwritten: the same without how the branches of layers are added to the stream, for a model
            that does not pass the checks of that.
    """

    architecture: Architecture | None
    established: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    alternatives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unwritten: "Callable[[], Derivation] | None" = field(default=None, repr=False, compare=False)

    def render(self) -> str:
        """A starter adapter file with the parts that were found; the others are comments."""
        from lensbridge.derive.render import render_adapter

        remarks = [f"{part}: not established: {why}" for part, why in self.missing.items()]
        if self.architecture is None:
            return "".join(f"# {line}\n" for line in remarks)
        remarks += _rivals(self.architecture, self.alternatives)
        return render_adapter(self.architecture, tuple(remarks))


def _rivals(architecture: Architecture, alternatives: dict[str, tuple[str, ...]]) -> list[str]:
    """For each formula of a description, which others have the same value."""
    said = repr(architecture)
    return [
        f"{chosen} has the same value in this config as {', '.join(others[:_MOST])}"
        for chosen, others in alternatives.items()
        if chosen in said
    ]

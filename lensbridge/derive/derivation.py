"""What `derive` could find out about a model."""

from dataclasses import dataclass, field

from lensbridge.spec import Architecture


@dataclass(frozen=True)
class Derivation:
    """What could be found out about a model.

    Args:
        architecture: the description; None where not even a list of layers was found.
        established: what was found, in words.
        missing: which part could not be established, and why.
    """

    architecture: Architecture | None
    established: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    def render(self) -> str:
        """A starter adapter file: the parts that were found, the others as comments."""
        from lensbridge.derive.render import render_adapter

        remarks = tuple(f"{part}: not established: {why}" for part, why in self.missing.items())
        if self.architecture is None:
            return "".join(f"# {line}\n" for line in remarks)
        return render_adapter(self.architecture, remarks)

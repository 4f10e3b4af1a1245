"""Plans of what will be done to a model's weights, made before anything is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lensbridge.errors import ProcessingError
from lensbridge.processing.undo_log import UndoLog

Step = Literal[
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
]
"""The steps, in the order in which they are applied."""

_STEPS: tuple[Step, ...] = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)

Wanted: TypeAlias = bool | None
"""True: do all of it or raise. None: do what this model allows. False: do nothing."""

OnImpossible = Literal["raise", "skip"]
"""What to do about a step that this model does not allow."""

Rewrite: TypeAlias = Callable[[UndoLog], None]


@dataclass(frozen=True)
class ProcessingOptions:
    """The arguments of `model.processed`: which steps to do, and which have to be complete."""

    fold_ln: Wanted = None
    center_writing_weights: Wanted = None
    center_unembed: Wanted = None
    fold_value_biases: Wanted = None
    refactor_factored_attn_matrices: Wanted = False
    on_impossible: OnImpossible = "raise"

    def __post_init__(self) -> None:
        if self.on_impossible not in ("raise", "skip"):
            raise ProcessingError(
                f"on_impossible must be 'raise' or 'skip', not {self.on_impossible!r}."
            )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The requested steps, in their order."""
        return tuple(step for step in _STEPS if vars(self)[step] is not False)

    def must(self, step: Step) -> bool:
        """Whether a step has to be complete, or else raises."""
        return bool(vars(self)[step]) and self.on_impossible == "raise"


@dataclass(frozen=True)
class Skipped:
    """Something that a step left out: where, and why."""

    step: Step
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass
class Plan:
    """One step: what it will rewrite, and what it leaves out.

    Args:
        step: the step.
        rewrites: the functions that rewrite.
        done: the names of what they rewrite.
        left: what the step leaves out, and why.
    """

    step: Step
    rewrites: list[Rewrite] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)

    def do(self, where: str, rewrite: Rewrite) -> None:
        """Add something to rewrite."""
        self.done.append(where)
        self.rewrites.append(rewrite)

    def leave(self, where: str, why: str) -> None:
        """Add something to leave out."""
        self.left.append(Skipped(self.step, where, why))

    def require_all(self) -> None:
        """Require that nothing is left out.

        Raises:
            ProcessingError: something is; the message has the reasons.
        """
        if self.left:
            raise ProcessingError(
                f"{self.step} cannot be done to all of this model:\n{_listed(self.left)}\n"
                f"Nothing was changed. Pass {self.step}=None (or on_impossible='skip') to do what "
                "is possible and find the rest in model.processing.left, or pass "
                f"{self.step}=False."
            )


def _listed(left: Sequence[Skipped], most: int = 4) -> str:
    """The reasons, each once, with the places that they are for."""
    reasons: dict[str, list[str]] = {}
    for one in left:
        reasons.setdefault(one.why, []).append(one.where)
    lines = [f"  {_places(where)}: {why}" for why, where in reasons.items()]
    more = [f"  and {len(lines) - most} more reasons"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)


def _places(where: Sequence[str]) -> str:
    return ", ".join(where) if len(where) < 4 else f"{where[0]} and {len(where) - 1} others"


@dataclass(frozen=True)
class Processing:
    """What was done to a model's weights and is in force now.

    Args:
        fold_ln, center_writing_weights, center_unembed, fold_value_biases,
            refactor_factored_attn_matrices: whether the step was done, to all or to some parts.
        folded: the norms whose gain and bias are in the weights that read them.
        left: what requested steps left out, and why.
    """

    fold_ln: bool = False
    center_writing_weights: bool = False
    center_unembed: bool = False
    fold_value_biases: bool = False
    refactor_factored_attn_matrices: bool = False
    folded: tuple[str, ...] = ()
    left: tuple[Skipped, ...] = ()

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> "Processing":
        """The result of some plans."""
        done = {plan.step: bool(plan.done) for plan in plans}
        folded = tuple(name for plan in plans if plan.step == "fold_ln" for name in plan.done)
        left = tuple(one for plan in plans for one in plan.left)
        return cls(**done, folded=folded, left=left)

    def then(self, later: "Processing") -> "Processing":
        """This, and what was done after it."""
        return Processing(
            **{step: vars(self)[step] or vars(later)[step] for step in _STEPS},
            folded=tuple(dict.fromkeys((*self.folded, *later.folded))),
            left=later.left,
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are in force."""
        return tuple(step for step in _STEPS if vars(self)[step])

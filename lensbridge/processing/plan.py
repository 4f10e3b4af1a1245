"""What is to be done to a model's weights, decided before anything is written."""

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
"""In the order in which they are applied."""

_STEPS: tuple[Step, ...] = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)

Wanted: TypeAlias = bool | None
"""True: all of it or an error. None: as far as this model allows. False: not at all."""

OnImpossible = Literal["raise", "skip"]
"""What happens to a step that this model does not allow."""

Rewrite: TypeAlias = Callable[[UndoLog], None]


@dataclass(frozen=True)
class ProcessingOptions:
    """Which steps are asked for, and how firmly; the arguments of `model.processed`."""

    fold_ln: Wanted = None
    center_writing_weights: Wanted = None
    center_unembed: Wanted = None
    fold_value_biases: Wanted = None
    refactor_factored_attn_matrices: Wanted = False
    on_impossible: OnImpossible = "raise"

    def __post_init__(self) -> None:
        if self.on_impossible not in ("raise", "skip"):
            raise ProcessingError(
                f"on_impossible is 'raise' or 'skip', not {self.on_impossible!r}."
            )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are asked for, in their order."""
        return tuple(step for step in _STEPS if vars(self)[step] is not False)

    def must(self, step: Step) -> bool:
        """Whether a step is to be done whole or not at all."""
        return bool(vars(self)[step]) and self.on_impossible == "raise"


@dataclass(frozen=True)
class Skipped:
    """Something that a step could not be done to: where, and why."""

    step: Step
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass
class Plan:
    """One step: what it will rewrite, and what it has to leave.

    Args:
        step: which.
        done: the names of what it is done to.
    """

    step: Step
    rewrites: list[Rewrite] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)

    def do(self, where: str, rewrite: Rewrite) -> None:
        """Something to rewrite."""
        self.done.append(where)
        self.rewrites.append(rewrite)

    def leave(self, where: str, why: str) -> None:
        """Something that must stay as it is."""
        self.left.append(Skipped(self.step, where, why))

    def require_all(self) -> None:
        """Nothing may be left.

        Raises:
            ProcessingError: something is, with the reasons.
        """
        if self.left:
            raise ProcessingError(
                f"{self.step} cannot be done to all of this model:\n{_listed(self.left)}\n"
                f"Nothing was changed. Pass {self.step}=None (or on_impossible='skip') to do it as "
                f"far as it goes and find the rest in model.processing.left, or {self.step}=False."
            )


def _listed(left: Sequence[Skipped], most: int = 4) -> str:
    """The reasons, each once, with where they hold."""
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
            refactor_factored_attn_matrices: whether the step was done, to all or to some.
        folded: the norms whose gain and bias are in the weights behind them.
        left: what a step that was asked for was not done to, and why.
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
        """What some plans came to."""
        done = {plan.step: bool(plan.done) for plan in plans}
        folded = tuple(name for plan in plans if plan.step == "fold_ln" for name in plan.done)
        left = tuple(one for plan in plans for one in plan.left)
        return cls(**done, folded=folded, left=left)

    def then(self, later: "Processing") -> "Processing":
        """This, and what was done on top of it."""
        return Processing(
            **{step: vars(self)[step] or vars(later)[step] for step in _STEPS},
            folded=tuple(dict.fromkeys((*self.folded, *later.folded))),
            left=later.left,
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are in force."""
        return tuple(step for step in _STEPS if vars(self)[step])

"""When: during which part of a generation an intervention acts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError

Phase = Literal["both", "prefill", "decode"]
"""prefill: the prompt. decode: the tokens that are generated."""

Steps: TypeAlias = int | slice | tuple[int, ...] | None
"""Steps of a generation, 0 being the prompt: one, several, a slice, or None for all."""


@dataclass(frozen=True)
class When:
    """During which part of a generation an intervention acts.

    Each column belongs to a step: those of the prompt to step 0, the first generated token to step
    1, and so on. This holds even if a run without a key/value cache computes columns again. A run
    that does not generate has only step 0.

    Args:
        phase: "prefill" for the prompt, "decode" for what is added to it, or "both".
        steps: which steps: one, some, a slice, or None for all.

    Example:
        >>> import torch
        >>> When("decode", slice(2, None)).holds(torch.arange(7), prompt=4)
        tensor([False, False, False, False, False,  True,  True])
    """

    phase: Phase = "both"
    steps: Steps | Sequence[int] = None

    def __post_init__(self) -> None:
        if self.phase not in ("both", "prefill", "decode"):
            raise InputError(f"when is 'prefill', 'decode' or 'both', not {self.phase!r}.")
        if isinstance(self.steps, int | slice) or self.steps is None:
            return
        object.__setattr__(self, "steps", tuple(int(step) for step in self.steps))

    @classmethod
    def of(cls, given: Any) -> "When":
        """A `When` from one, or from the name of a phase."""
        return given if isinstance(given, When) else cls(given)

    @property
    def is_always(self) -> bool:
        """Whether it includes every column."""
        return self.phase == "both" and self.steps is None

    @property
    def reaches_generated(self) -> bool:
        """Whether it includes columns of generated tokens."""
        if self.phase == "prefill" or self.steps == 0:
            return False
        return not isinstance(self.steps, tuple) or any(step > 0 for step in self.steps)

    @property
    def reaches_prompt(self) -> bool:
        """Whether it includes the prompt, which is all that a run without generation has."""
        return bool(self.holds(torch.zeros(1, dtype=torch.long), 1))

    def holds(self, columns: Tensor, prompt: int) -> Tensor:
        """Which columns it includes. Shapes: as `columns`, bool."""
        step = (columns - prompt + 1).clamp(min=0)
        found = torch.ones_like(columns, dtype=torch.bool)
        if self.phase != "both":
            found = (step > 0) == (self.phase == "decode")
        if isinstance(self.steps, int):
            return found & (step == self.steps)
        if isinstance(self.steps, tuple):
            return found & torch.isin(step, torch.tensor(self.steps, device=step.device))
        if isinstance(self.steps, slice):
            start, stop, by = self.steps.start or 0, self.steps.stop, self.steps.step or 1
            found = found & (step >= start) & ((step - start) % by == 0)
            return found if stop is None else found & (step < stop)
        return found


ALWAYS = When()

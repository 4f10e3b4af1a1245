"""How an SAE fits a point: which part of the value it reads, in which form, and what it replaces.

To see what an SAE takes, it is tried on zeros of the point's shape: as they are, then with heads
joined in one axis. So every SAE that works is accepted, and any other is refused before a run.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from lensbridge.errors import EditError, HookError
from lensbridge.saes.dictionary import Dictionary, Part

Form = Literal["as it is", "heads in one axis"]
"""How an SAE takes the activation of a point."""


@dataclass(frozen=True)
class Place:
    """One side of an SAE: a point, seen as the SAE sees it.

    Args:
        name: canonical name of the point.
        axes: its axes.
        size: sizes of the axes after the position; None where they are known only in a run.
        head: the one head that is meant; None for the whole value.
    """

    name: str
    axes: str
    size: tuple[int, ...] | None
    head: int | None = None

    @property
    def lead(self) -> int:
        """The number of axes before those that an SAE reads."""
        letters = self.axes.split()
        counted = [letters.index(one) for one in "bpqk" if one in letters]
        return min(len(letters) - 1, 1 + max(counted, default=0))

    @property
    def whole_axes(self) -> str:
        """The axes of the part that is meant."""
        letters = self.axes.split()
        if self.head is not None:
            del letters[self.head_axis]
        return " ".join(letters)

    @property
    def head_axis(self) -> int:
        """The axis of heads.

        Raises:
            HookError: there is none.
        """
        letters = self.axes.split()
        found = [letters.index(one) for one in "hg" if one in letters[self.lead :]]
        if not found:
            raise HookError(
                f"{self.name} has no axis of heads after the position ({self.axes}), and the SAE "
                f"is for head {self.head} (cfg.metadata.hook_head_index)."
            )
        return found[0]

    def sized(self, value: Tensor) -> "Place":
        """The place with the sizes of a value."""
        return Place(self.name, self.axes, tuple(value.shape[self.lead :]), self.head)

    def part_size(self) -> tuple[int, ...] | None:
        """The sizes of the part, after the position.

        Raises:
            HookError: there is no such head.
        """
        if self.head is None or self.size is None:
            return self.size
        at = self.head_axis - self.lead
        if not -self.size[at] <= self.head < self.size[at]:
            raise HookError(
                f"{self.name} has {self.size[at]} heads, and the SAE is for head {self.head}."
            )
        return (*self.size[:at], *self.size[at + 1 :])

    def part(self, value: Tensor) -> Tensor:
        """The part of a value that the SAE reads or replaces."""
        return value if self.head is None else value.select(self.head_axis, self.head)

    def put(self, value: Tensor, part: Tensor) -> Tensor:
        """The value with another part."""
        if self.head is None:
            return part
        return value.select_scatter(part, self.head_axis, self.head)

    def flat(self, part: Tensor) -> Tensor:
        """A part with the axes after the position joined in one."""
        return part.flatten(self.lead)


@dataclass(frozen=True)
class Fit:
    """An SAE between two points (the same one, for all but transcoders).

    Args:
        reads: the form in which it takes the activation.
        shows: the values that pass through its own hook points.
    """

    source: Place
    target: Place
    reads: Form
    shows: frozenset[Part]

    @classmethod
    def of(cls, dictionary: Dictionary, source: Place, target: Place) -> "Fit":
        """How an SAE fits two places of known sizes.

        Raises:
            EditError: it does not fit.
        """
        wide, back = source.part_size(), target.part_size()
        assert wide is not None
        assert back is not None
        failures: list[str] = []
        for form, size in _forms(wide):
            given = torch.zeros((1,) * source.lead + size)
            try:
                decoded, shown = _tried(dictionary, given)
            except Exception as error:
                failures.append(f"{list(size)}: {error}")
                continue
            if decoded.shape[source.lead :] in [wanted for _, wanted in _forms(back)]:
                return cls(source, target, form, shown)
            failures.append(f"{list(size)}: it gives {list(decoded.shape[source.lead :])} back")
        raise EditError(
            f"{dictionary.kind} does not fit: {source.name} is {list(wide)} wide after its "
            f"position ({source.axes})"
            + (f" and {target.name} {list(back)}" if target != source else "")
            + ". Tried on "
            + "; on ".join(failures)
        )

    def given(self, value: Tensor, like: Tensor | None) -> Tensor:
        """The input of the SAE from a value, in its dtype and on its device."""
        part = self.source.part(value)
        flat = part if self.reads == "as it is" else self.source.flat(part)
        return flat if like is None else flat.to(like.device, like.dtype)

    def back(self, decoded: Tensor, part: Tensor) -> Tensor:
        """The decoded value in the shape and on the device of the part that it replaces."""
        return decoded.reshape(part.shape).to(part.device)


def _forms(size: tuple[int, ...]) -> list[tuple[Form, tuple[int, ...]]]:
    forms: list[tuple[Form, tuple[int, ...]]] = [("as it is", size)]
    return forms if len(size) < 2 else [*forms, ("heads in one axis", (prod(size),))]


def _tried(dictionary: Dictionary, given: Tensor) -> tuple[Tensor, frozenset[Part]]:
    shown: set[Part] = set()

    def show(part: Part, value: Tensor) -> Tensor:
        shown.add(part)
        return value

    like = dictionary.example()
    given = given if like is None else given.to(like.device, like.dtype)
    with torch.no_grad(), dictionary.showing(show):  # type: ignore[arg-type]
        decoded = dictionary.sae.decode(dictionary.sae.encode(given))
        if dictionary.skip is not None:
            decoded = decoded + given @ dictionary.skip.mT
    return decoded, frozenset(shown)

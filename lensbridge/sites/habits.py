"""What the axes of a module's values count, as far as its class says.

Interventions need it: `neurons` are features or channels, `positions` are steps of a sequence.
Where the class of a module does not say, an axis has a letter that means nothing, and an
intervention that asks for it is refused.
"""

from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

Letters: TypeAlias = tuple[str, ...]

_SPATIAL: dict[int, Letters] = {1: ("p",), 2: ("y", "w"), 3: ("z", "y", "w")}
_CHANNELS_FIRST = ("Conv", "BatchNorm", "InstanceNorm", "Pool", "Upsample", "ReflectionPad")
_UNKNOWN = tuple("ijoacdef")


@dataclass(frozen=True)
class Habits:
    """What the modules of one model have in common.

    Args:
        images: whether some layers work on images, `[batch, channel, height, width]`.
        channels_first: whether some layers take sequences as `[batch, channel, position]`.
        batch_second: whether some layers take sequences as `[position, batch, feature]`.
    """

    images: bool
    channels_first: bool
    batch_second: bool

    @classmethod
    def of(cls, model: nn.Module) -> "Habits":
        """Read them from the classes of the modules."""
        found = [_spatial(module) for module in model.modules()]
        second = any(getattr(one, "batch_first", True) is False for one in model.modules())
        return cls(2 in found, 1 in found, second)

    def letters(self, module: nn.Module, rank: int, first: bool = True) -> Letters:
        """The axes of a value of so many axes, at the input or the output of a module.

        Args:
            module: the module.
            rank: how many axes there are.
            first: whether it is the first tensor there; what the others are, no class says.
        """
        if not first:
            return tuple(_UNKNOWN[:rank])
        spatial = _spatial(module)
        if spatial is not None and rank == spatial + 2:
            return ("b", "u", *_SPATIAL[spatial])
        if rank == 3:
            return self._of_sequence(module)
        if rank == 4 and self.images and not isinstance(module, nn.Linear | nn.LayerNorm):
            return ("b", "u", "y", "w")
        if rank <= 2 or isinstance(module, nn.Linear | nn.LayerNorm):
            return (*("b", *_UNKNOWN)[: max(rank - 1, 0)], *("u",)[:rank])
        return ("b", *_UNKNOWN)[:rank]

    def _of_sequence(self, module: nn.Module) -> Letters:
        own = getattr(module, "batch_first", None)
        if own is not None:
            return ("b", "p", "u") if own else ("p", "b", "u")
        if self.batch_second:
            return ("i", "j", "u")
        if self.channels_first and not isinstance(module, nn.Linear | nn.LayerNorm):
            return ("b", "i", "j")
        return ("b", "p", "u")


def _spatial(module: nn.Module) -> int | None:
    """How many axes of space a layer works on; None for one that works on none, or any number."""
    kind, digit, end = type(module).__name__[:-2], *type(module).__name__[-2:].rjust(2)
    known = end == "d" and digit in "123" and any(one in kind for one in _CHANNELS_FIRST)
    return int(digit) if known else None

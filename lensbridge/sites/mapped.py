"""A chain for values that the model has in another form than the point."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lensbridge.sites.call import Chain


@dataclass(frozen=True)
class MappedChain:
    """The callbacks of a point, for a value in the model's own form.

    Args:
        chain: the callbacks, which take the form of the point.
        read: from the model's form to the point's.
        write: from the point's form to the model's.
    """

    chain: Chain
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]

    @property
    def edits(self) -> bool:
        """Whether any callback may change the value."""
        return self.chain.edits

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Run the callbacks on the value; what they give, in the model's form."""
        new = self.chain.run(self.read(value), in_place=in_place)
        return None if new is None else self.write(new)

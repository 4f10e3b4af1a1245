"""What was found of one layer."""

from dataclasses import dataclass, field

from lensbridge.derive.heads import Sizes
from lensbridge.derive.norms import NormFacts
from lensbridge.spec import Block, Norms


@dataclass
class FoundBlock:
    """The description of a layer.

    Args:
        block: the description; its `residual` is None where the sums were not found.
        sizes: the sizes of its attention, if it has any.
        missing: which part could not be established, and why.
        absolute: whether absolute positions matter to its rotary attention.
    """

    block: Block
    sizes: Sizes | None = None
    missing: dict[str, str] = field(default_factory=dict)
    absolute: bool = False


def undescribed(usual: NormFacts | Norms) -> Block:
    """A block with only input and output described; its kind of norm is that of the final norm."""
    kinds = Norms(kind=usual.kind, unit_offset=usual.unit_offset, eps=usual.eps)
    return Block(norms=kinds, residual=None)

"""The field's patch setters, which write a clean value to one place of an activation.

Each takes the corrupted activation, the index of the cell (with the layer first) and the clean
activation. It writes the clean value into the corrupted activation and returns that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lensbridge.sweeps.edit import Setter


def layer_pos_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """`[layer, pos]` of `[batch, pos, ...]`."""
    _, pos = index
    corrupted_activation[:, pos] = clean_activation[:, pos]
    return corrupted_activation


def layer_pos_head_vector_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """`[layer, pos, head]` of `[batch, pos, head, d_head]`."""
    _, pos, head = index
    corrupted_activation[:, pos, head] = clean_activation[:, pos, head]
    return corrupted_activation


def layer_head_vector_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """`[layer, head]` of `[batch, pos, head, d_head]`: every position."""
    _, head = index
    corrupted_activation[:, :, head] = clean_activation[:, :, head]
    return corrupted_activation


def layer_head_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """`[layer, head]` of `[batch, head, dest_pos, src_pos]`: a head's whole pattern."""
    _, head = index
    corrupted_activation[:, head] = clean_activation[:, head]
    return corrupted_activation


def layer_head_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """`[layer, head, dest_pos]` of `[batch, head, dest_pos, src_pos]`: one row of a pattern."""
    _, head, dest = index
    corrupted_activation[:, head, dest] = clean_activation[:, head, dest]
    return corrupted_activation


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """`[layer, head, dest_pos, src_pos]` of `[batch, head, dest_pos, src_pos]`: one weight."""
    _, head, dest, src = index
    corrupted_activation[:, head, dest, src] = clean_activation[:, head, dest, src]
    return corrupted_activation


@dataclass(frozen=True)
class SetterAxes:
    """Which activations a published setter is for, and what its index counts.

    Args:
        name: of the setter.
        letters: the letters that the first axes of the activation may have.
        indexed: the axes that the numbers of the index point into, after the layer.
    """

    name: str
    letters: tuple[str, ...]
    indexed: tuple[int, ...]


_STREAM, _HEADS, _PATTERN = ("b", "p"), ("b", "p", "hg"), ("b", "hg", "q", "k")
PUBLISHED: dict[Setter, SetterAxes] = {
    setter: SetterAxes(setter.__name__, letters, indexed)
    for setter, letters, indexed in (
        (layer_pos_patch_setter, _STREAM, (1,)),
        (layer_pos_head_vector_patch_setter, _HEADS, (1, 2)),
        (layer_head_vector_patch_setter, _HEADS, (2,)),
        (layer_head_pattern_patch_setter, _PATTERN, (1,)),
        (layer_head_pos_pattern_patch_setter, _PATTERN, (1, 2)),
        (layer_head_dest_src_pos_pattern_patch_setter, _PATTERN, (1, 2, 3)),
    )
}
"""The setters of this module, and their axes."""


def indexed_axes(setter: Setter) -> tuple[int, ...]:
    """The axes that the index of a setter points into; none for a setter of the user's."""
    published = PUBLISHED.get(setter)
    return () if published is None else published.indexed

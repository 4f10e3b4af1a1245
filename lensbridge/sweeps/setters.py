"""The field's patch setters: where an index points to in an activation.

Each takes the corrupted activation, the index of the cell (the layer first) and the clean
activation, writes the clean value into the corrupted one and returns it.
"""

from collections.abc import Sequence

from torch import Tensor

from lensbridge.sweeps.cell import Setter


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
    """`[layer, head, dest_pos, src_pos]` of `[batch, head, dest_pos, src_pos]`: one number."""
    _, head, dest, src = index
    corrupted_activation[:, head, dest, src] = clean_activation[:, head, dest, src]
    return corrupted_activation


AXES_MEANT: dict[Setter, tuple[str, ...]] = {
    layer_pos_patch_setter: ("b", "p"),
    layer_pos_head_vector_patch_setter: ("b", "p", "hg"),
    layer_head_vector_patch_setter: ("b", "p", "hg"),
    layer_head_pattern_patch_setter: ("b", "hg", "q", "k"),
    layer_head_pos_pattern_patch_setter: ("b", "hg", "q", "k"),
    layer_head_dest_src_pos_pattern_patch_setter: ("b", "hg", "q", "k"),
}
"""For each setter, the letters that the first axes of its activation may have."""

INDEXED_AXES: dict[Setter, tuple[int, ...]] = {
    layer_pos_patch_setter: (1,),
    layer_pos_head_vector_patch_setter: (1, 2),
    layer_head_vector_patch_setter: (2,),
    layer_head_pattern_patch_setter: (1,),
    layer_head_pos_pattern_patch_setter: (1, 2),
    layer_head_dest_src_pos_pattern_patch_setter: (1, 2, 3),
}
"""For each setter, the axes of the activation that the index behind the layer points into."""

"""Which of the blocks that a description has are held: those with which some layer is read."""

import re
from collections.abc import Iterable, Iterator

from lensbridge.conformance.check import Row
from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.subject import Subject
from lensbridge.native.parts import StackPart
from lensbridge.native.resolve import config_dict
from lensbridge.spec import Stack

UNHELD = "every block described is held"
"""The name of the check. A report always lists it, if some block is not held."""

_NAME = re.compile(r"(?:[\w.]+: )?block\[\d+\]")

KINDS = (
    "layer_types", "layers_block_type", "mlp_layer_types", "mlp_only_layers", "decoder_sparse_step",
    "first_k_dense_replace", "num_dense_layers", "interleave_moe_layer_step", "moe_layers",
    "moe_layer_freq", "moe_layer_interval", "attn_layer_indices", "attn_layer_period",
    "expert_layer_period", "cross_attention_layers", "num_kv_shared_layers", "enable_moe_block",
    "n_shared_experts", "num_shared_experts", "new_decoder_architecture", "parallel_attn",
)  # fmt: skip
"""Config fields that choose the kind of each layer, or of all."""


def check_every_block_is_held(subject: Subject) -> None:
    """Some layer is read with each block that is described; the others are named."""
    spec = subject.model.architecture
    pairs = zip((spec, *spec.towers), subject.stacks.values(), strict=True)
    unread = [name for stack, part in pairs for name in _unread(stack, part)]
    if unread:
        many = len(unread) > 1
        fields = [name for name in KINDS if name in config_dict(subject.model.native.core)]
        other = f", with other values of {' or '.join(fields)}" if fields else ""
        raise NotApplicable(
            f"{', '.join(unread)} {'are' if many else 'is'} not held: no layer of this model is "
            f"read with {'them' if many else 'it'}. Check a model that has such layers too{other}."
        )
    subject.expect.holds("block", True, "each is read")


def _unread(stack: Stack, part: StackPart) -> Iterator[str]:
    """The blocks of a stack with which none of its layers is read."""
    described = stack.block if isinstance(stack.block, tuple) else (stack.block,)
    read = {block.variant for block in part.blocks}
    at = "" if part.prefix == "blocks" else f"{part.prefix}: "
    yield from (f"{at}block[{i}]" for i in range(len(described)) if i not in read)


def unheld(rows: Iterable[Row]) -> list[str]:
    """The blocks with which no layer of any model was read: `block[1] of 'mine'`."""
    left: dict[str, set[str]] = {}
    for row in rows:
        names = set(_NAME.findall(row.detail.partition(" not held")[0]))
        if row.check == UNHELD and (names or row.status == "passed"):
            left[row.architecture] = left.get(row.architecture, names) & names
    return [f"{one} of {name!r}" for name, names in left.items() for one in sorted(names)]

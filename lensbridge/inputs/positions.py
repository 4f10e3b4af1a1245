"""Which text the columns of a point belong to, and which of them are tokens."""

from typing import Literal, TypeAlias

from torch import Tensor

from lensbridge.inputs.prepare import Prepared
from lensbridge.native.parts import ResolvedModel

ColumnOwner: TypeAlias = Literal["text", "encoder", "decoder", "tower"]
"""What the columns of a point belong to: the text; the encoder or the decoder; or another stack
(tower), such as one for pictures, whose columns the input does not show."""


def column_owner(native: ResolvedModel, name: str) -> ColumnOwner:
    """What the columns of a point belong to."""
    for stack in native.towers:
        front = native.front_of(stack)
        if name.startswith((f"{stack.prefix}.", front)):
            return "encoder" if front == "encoder." else "tower"
    if name.endswith(("cross_attn.hook_k", "cross_attn.hook_v")):
        return "encoder"
    return "decoder" if native.is_encoder_decoder else "text"


def decoder_input(prepared: Prepared) -> Tensor | None:
    """Ids or embeddings that are given to the decoder of an encoder-decoder; None: none are."""
    found = (prepared.kwargs.get(f"decoder_{kind}") for kind in ("input_ids", "inputs_embeds"))
    return next((value for value in found if isinstance(value, Tensor)), None)


def mask_of(owner: ColumnOwner, prepared: Prepared) -> Tensor | None:
    """The mask of a point's columns, 1 for tokens; None if none is masked.

    Shapes: `[batch, column]`
    """
    if owner == "tower":
        return None
    decodes = owner == "decoder"
    mask = prepared.kwargs.get("decoder_attention_mask") if decodes else prepared.mask
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

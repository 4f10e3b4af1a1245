"""A native model taken apart: which module has which role. Built by `native/resolve`."""

from lensbridge.native.parts.branches import (
    AttentionPart,
    FeedForward,
    LatentPart,
    MixerPart,
    MLPPart,
    MoEPart,
    OpaquePart,
    Role,
    Writer,
)
from lensbridge.native.parts.model import LabelKind, Override, ResolvedModel
from lensbridge.native.parts.stack import BlockPart, Members, NormSlot, Sizes, StackPart

__all__ = [
    "AttentionPart",
    "BlockPart",
    "FeedForward",
    "LabelKind",
    "LatentPart",
    "MLPPart",
    "Members",
    "MixerPart",
    "MoEPart",
    "NormSlot",
    "OpaquePart",
    "Override",
    "ResolvedModel",
    "Role",
    "Sizes",
    "StackPart",
    "Writer",
]

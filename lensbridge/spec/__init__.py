"""The vocabulary in which an architecture is described: frozen values, no torch.

An adapter makes one `Architecture` for each layout of modules in a family. Paths are dotted and
relative to the enclosing part: `embed` to the model, `norms` to the block, `up` to the MLP; "" is
the enclosing module itself. A description is checked against the model when that is loaded
(`native/resolve`), and by running the model (`lensbridge.testing`).
"""

from lensbridge.spec.attention import Attention, FusedQKV, KernelQKV, LatentQKV, Mixer, SplitQKV
from lensbridge.spec.mlp import MLP, FusedGatedMLP, GatedMLP, MoE, Opaque, StackedExperts
from lensbridge.spec.stack import Architecture, Block, Dims, Norms, Stack
from lensbridge.spec.words import (
    ExpertInput,
    ExpertLayout,
    FusedLayout,
    FusedOrder,
    Halves,
    NormKind,
    QKNormAxes,
    Residual,
    Scale,
    Streams,
)

__all__ = [
    "MLP",
    "Architecture",
    "Attention",
    "Block",
    "Dims",
    "ExpertInput",
    "ExpertLayout",
    "FusedGatedMLP",
    "FusedLayout",
    "FusedOrder",
    "FusedQKV",
    "GatedMLP",
    "Halves",
    "KernelQKV",
    "LatentQKV",
    "Mixer",
    "MoE",
    "NormKind",
    "Norms",
    "Opaque",
    "QKNormAxes",
    "Residual",
    "Scale",
    "SplitQKV",
    "Stack",
    "StackedExperts",
    "Streams",
]

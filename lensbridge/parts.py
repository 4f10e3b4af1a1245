"""A native model taken apart: which module plays which role. Built by `resolve.py`, read by all."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lensbridge.layouts import Layout
from lensbridge.norms import Norm
from lensbridge.spec import Architecture, Residual
from lensbridge.weights import Linear


@dataclass(frozen=True)
class Sizes:
    """The sizes of one model."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int


@dataclass(frozen=True)
class Role:
    """One of q, k, v: the projection that it comes from and its share of that projection."""

    linear: Linear
    layout: Layout
    n: int


@dataclass(frozen=True)
class AttentionPart:
    """Attention of one block. `writer`'s output is what is added to the residual stream."""

    module: nn.Module
    path: str
    q: Role
    k: Role
    v: Role
    out: Linear
    writer: nn.Module
    rotary: bool


@dataclass(frozen=True)
class MLPPart:
    """MLP of one block; `gate` only in a gated one."""

    module: nn.Module
    path: str
    up: Linear
    gate: Linear | None
    down: Linear
    writer: nn.Module


@dataclass(frozen=True)
class BlockPart:
    """One block. A norm slot that the architecture leaves empty is None."""

    module: nn.Module
    path: str
    ln1: Norm | None
    ln1_post: Norm | None
    ln2: Norm | None
    ln2_post: Norm | None
    attn: AttentionPart
    mlp: MLPPart
    residual: Residual


@dataclass(frozen=True)
class Native:
    """One model, resolved.

    Args:
        root: the object that is called (a PEFT wrapper, where there is one).
        core: the transformers model inside it.
        paths: module -> its dotted path in `core`, for messages.
        checkpointers: modules with a `gradient_checkpointing` switch.
    """

    root: nn.Module
    core: nn.Module
    architecture: Architecture
    plugin: str
    sizes: Sizes
    act_fn: str
    embed: nn.Module
    pos_embed: nn.Module | None
    blocks: tuple[BlockPart, ...]
    ln_final: Norm
    unembed: Linear | None
    paths: dict[nn.Module, str]
    checkpointers: tuple[Any, ...]

"""The vocabulary in which an architecture is described: frozen values, no torch.

An adapter builds one `Architecture` for each way in which a family lays out its modules. Paths are
dotted and relative to what encloses them: `embed` to the model, `norms` to the block, `up` to the
MLP. Everything that is said here is checked against the model when it is loaded (`resolve.py`) and
by behaviour in the tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Residual = Literal["sequential", "parallel"]
"""Whether the MLP reads the stream after attention was added, or the same stream as attention."""

NormKind = Literal["LN", "RMS"]
"""LayerNorm (centres and divides) or RMSNorm (divides only)."""

FusedLayout = Literal["blocked", "grouped"]
"""How one projection holds q, k and v: all q, all k, all v; or per key/value head its queries,
its key, its value."""


@dataclass(frozen=True)
class Dims:
    """Names of the config fields that hold the sizes. None: derived from the others.

    `kv_heads` falls back to `heads`, `d_head` to d_model / heads.
    """

    layers: str = "num_hidden_layers"
    d_model: str = "hidden_size"
    heads: str = "num_attention_heads"
    kv_heads: str | None = None
    d_head: str | None = None
    vocab: str = "vocab_size"
    context: str = "max_position_embeddings"


@dataclass(frozen=True)
class Norms:
    """Which module stands in which of the four slots, relative to the block.

    The slots say what is read and written, never HuggingFace's own names:
    `post_attention_layernorm` is the MLP's input norm in Llama.
    """

    pre_attn: str | None = None
    post_attn: str | None = None
    pre_mlp: str | None = None
    post_mlp: str | None = None
    kind: NormKind = "LN"


@dataclass(frozen=True)
class SplitQKV:
    """Three projections, relative to the attention module."""

    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"


@dataclass(frozen=True)
class FusedQKV:
    """One projection that holds q, k and v, relative to the attention module."""

    path: str
    layout: FusedLayout


@dataclass(frozen=True)
class Attention:
    """The attention module of a block.

    Args:
        path: the module, relative to the block.
        qkv: how queries, keys and values are projected.
        out: the output projection, relative to the attention module.
        rotary: whether q and k are rotated by position after projection.
        written_by: the module of the block whose output is added to the residual stream, where
            that is not the attention module itself (a dropout behind it, say).
    """

    path: str
    qkv: SplitQKV | FusedQKV
    out: str
    rotary: bool = False
    written_by: str | None = None


@dataclass(frozen=True)
class MLP:
    """Up, activation, down. `path` and `written_by` start at the block, the rest at `path`."""

    path: str
    up: str
    down: str
    act: str = "hidden_act"
    written_by: str | None = None


@dataclass(frozen=True)
class GatedMLP:
    """act(gate) * up, then down. Paths as in `MLP`."""

    path: str
    gate: str
    up: str
    down: str
    act: str = "hidden_act"
    written_by: str | None = None


@dataclass(frozen=True)
class Block:
    """One layer: its norms, attention and MLP, and how they meet the residual stream."""

    norms: Norms
    attn: Attention
    mlp: MLP | GatedMLP
    residual: Residual = "sequential"


@dataclass(frozen=True)
class Architecture:
    """How one family of models lays out its modules.

    Args:
        name: what errors and `model.cfg` call it.
        classes: class names of the models that it describes.
        embed: token embedding, from the model with a language-model head. A bare base model has
            the same modules without the base prefix, and no head.
        blocks: the list of layers.
        block: what one layer looks like.
        final_norm: the norm before the head.
        unembed: the head.
        pos_embed: learned absolute positions, where there are any.
        dims: which config fields hold the sizes.
        requires: config fields and the values they must have for this description to hold. Two
            variants of one class are two descriptions.
        overrides: the name of the architecture that this one replaces for the same classes.
    """

    name: str
    classes: tuple[str, ...]
    embed: str
    blocks: str
    block: Block
    final_norm: str
    unembed: str
    pos_embed: str | None = None
    dims: Dims = Dims()
    requires: Mapping[str, object] = field(default_factory=dict)
    overrides: str | None = None

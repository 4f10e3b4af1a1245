"""Units: the kinds of nodes that users name, and the points where they are replaced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lensbridge.errors import AbsentPointError, InputError, UnknownPointError
from lensbridge.hooked_model import HookedModel
from lensbridge.native.parts import AttentionPart, BlockPart, MLPPart, StackPart
from lensbridge.nodes.node import Component, Kind, Node

Unit = Literal[
    "input",
    "head",
    "cross_head",
    "q",
    "k",
    "v",
    "cross_q",
    "cross_k",
    "cross_v",
    "attn",
    "cross",
    "mixer",
    "mlp",
    "neuron",
    "stream",
]


@dataclass(frozen=True)
class Row:
    """One unit.

    Args:
        point: its name after the layer's prefix; for the input see `entrance_of`.
        kind: of its nodes.
        index: name of the axis that counts parts of a layer, or None.
        component: of its nodes.
    """

    point: str
    kind: Kind
    index: str | None = None
    component: Component | None = None


UNITS: Mapping[str, Row] = {
    "input": Row("hook_embed", "input"),
    "head": Row("attn.hook_z", "head", "head"),
    "cross_head": Row("cross_attn.hook_z", "cross_head", "head"),
    "q": Row("attn.hook_q", "head", "head", "q"),
    "k": Row("attn.hook_k", "head", "kv_head", "k"),
    "v": Row("attn.hook_v", "head", "kv_head", "v"),
    "cross_q": Row("cross_attn.hook_q", "cross_head", "head", "q"),
    "cross_k": Row("cross_attn.hook_k", "cross_head", "kv_head", "k"),
    "cross_v": Row("cross_attn.hook_v", "cross_head", "kv_head", "v"),
    "attn": Row("hook_attn_out", "attn"),
    "cross": Row("hook_cross_attn_out", "cross"),
    "mixer": Row("hook_mixer_out", "mixer"),
    "mlp": Row("hook_mlp_out", "mlp"),
    "neuron": Row("mlp.hook_post", "neuron", "neuron"),
    "stream": Row("hook_resid_pre", "stream"),
}
BY_NODE = {(row.kind, row.component): unit for unit, row in UNITS.items()}


def stack_of(model: HookedModel, prefix: str | None) -> StackPart:
    """A stack by its prefix; None is the main one.

    Raises:
        InputError: there is no such stack.
    """
    native = model.native
    found = {stack.prefix: stack for stack in native.stacks}
    if prefix is not None and prefix not in found:
        raise InputError(f"There is no stack {prefix!r}; there are {', '.join(found)}.")
    return native.main if prefix is None else found[prefix]


def points_of(model: HookedModel, stack: StackPart, unit: str) -> dict[int | None, str]:
    """The point of a unit in each layer that has it.

    Raises:
        InputError: no such unit.
        AbsentPointError: no layer of this model has it, with the reason.
    """
    if unit not in UNITS:
        raise InputError(f"There is no unit {unit!r}; there are {', '.join(UNITS)}.")
    index = model.vocabulary.index
    if unit == "input":
        return {None: entrance_of(model, stack)}
    names = {i: f"{stack.prefix}.{i}.{_last(block, unit)}" for i, block in enumerate(stack.blocks)}
    found: dict[int | None, str] = {i: name for i, name in names.items() if name in index}
    if not found:
        try:
            model.vocabulary.canonical(names[0])  # which says why there is none
        except UnknownPointError as error:
            raise AbsentPointError(f"{stack.prefix} has no {unit}: {error}") from error
    return found


def entrance_of(model: HookedModel, stack: StackPart) -> str:
    """Where the input enters the stream: after a norm of the embeddings, positions included.

    Where the first layer does not read one stream, or layers read the embeddings beside it, it is
    the embeddings.

    Raises:
        AbsentPointError: the stack has no token embedding.
    """
    embedding = model.vocabulary.canonical(model.native.front_of(stack) + UNITS["input"].point)
    first = f"{stack.prefix}.0.hook_resid_pre"
    read_beside = any(b.mixer is not None and b.mixer.fed_more for b in stack.blocks)
    one_stream = stack.residual_axes == "b p m" and not read_beside
    return first if one_stream and first in model.vocabulary.index else embedding


def _last(block: BlockPart, unit: str) -> str:
    """With latent attention, one part of the key is shared by all heads until rotary."""
    latent = block.attn is not None and block.attn.latent is not None
    return "attn.hook_rot_k" if unit == "k" and latent else UNITS[unit].point


def block_of(model: HookedModel, node: Node) -> BlockPart:
    """The layer that a node is in.

    Raises:
        InputError: there is no such layer.
    """
    stack = stack_of(model, node.stack)
    blocks = stack.blocks
    if node.layer is None or not 0 <= node.layer < len(blocks):
        whose = "this model" if node.stack is None else stack.prefix
        raise InputError(f"{node}: {whose} has {len(blocks)} layers.")
    return blocks[node.layer]


def point_of(model: HookedModel, node: Node) -> str:
    """Where a node's value is replaced.

    Raises:
        InputError: the node only reads, or the model has no such node.
        AbsentPointError: the model has no such part.
    """
    unit = BY_NODE.get((node.kind, node.component))
    if unit is None:
        raise InputError(f"{node} writes nothing that could be replaced.")
    stack, row = stack_of(model, node.stack), UNITS[unit]
    if node.layer is None:
        return entrance_of(model, stack)
    block = block_of(model, node)
    name = model.vocabulary.canonical(f"{stack.prefix}.{node.layer}.{_last(block, unit)}")
    count = size_of(block, row)
    if node.index is not None and not (count is None or 0 <= node.index < count):
        what = {"kv_head": "key/value heads", "neuron": "neurons"}.get(row.index or "", "heads")
        raise InputError(f"{node}: layer {node.layer} has {count} {what}.")
    return name


def size_of(block: BlockPart, row: Row) -> int | None:
    """How many nodes of a unit a layer has; None where that is known only in a run."""
    attn: AttentionPart | None = block.cross if row.kind == "cross_head" else block.attn
    if row.kind == "neuron":
        return block.mlp.down.n_in if isinstance(block.mlp, MLPPart) else None
    if row.index is None or attn is None:
        return None
    return attn.n_kv if row.index == "kv_head" else attn.n_heads


def usual_units(model: HookedModel, stack: StackPart) -> list[str]:
    """Input, heads, mixers and MLPs: those that at least one layer has."""
    usual = ("input", "head", "cross_head", "mixer", "mlp")
    return [unit for unit in usual if _layers_with(model, stack, unit)]


def enumerate_nodes(
    model: HookedModel,
    units: Sequence[str] | None = None,
    *,
    positions: int | None = None,
    stack: str | None = None,
) -> list[Node]:
    """The nodes of a stack.

    Args:
        model: the model.
        units: kinds of nodes; None: input, heads, mixers and MLPs, as far as the model has them.
        positions: one node for each of this many positions; None: one for all of them.
        stack: its prefix; None: the main one.
    """
    part, found = stack_of(model, stack), []
    prefix = None if part is model.native.main else stack
    for unit in usual_units(model, part) if units is None else units:
        for layer in _layers_with(model, part, unit):
            row = UNITS[unit]
            count = None if layer is None else size_of(part.blocks[layer], row)
            for i in [None] if row.index is None else range(count or 0):
                found.append(Node(row.kind, layer, i, row.component, stack=prefix))
    if positions is None:
        return found
    return [replace(node, position=p) for p in range(positions) for node in found]


def _layers_with(model: HookedModel, stack: StackPart, unit: str) -> list[int | None]:
    try:
        return list(points_of(model, stack, unit))
    except AbsentPointError:
        return []

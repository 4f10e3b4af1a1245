"""fold_value_biases: b_V adds the same to every position, so it is moved into b_O."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from lensbridge.native.parts import AttentionPart, ResolvedModel, Role
from lensbridge.processing import matrix
from lensbridge.processing.matrix import Matrix, wide
from lensbridge.processing.plan import Plan
from lensbridge.processing.readers import processed_stacks
from lensbridge.processing.undo_log import UndoLog
from lensbridge.tensors.layouts import per_head_out, repeat_kv


def attentions(native: ResolvedModel) -> Iterator[tuple[str, AttentionPart]]:
    """Every described attention module once, with its name."""
    seen: set[nn.Module] = set()
    for stack in processed_stacks(native):
        for i, block in enumerate(stack.blocks):
            for name, attn in (("attn", block.attn), ("cross_attn", block.cross)):
                if attn is not None and attn.out.module not in seen:
                    seen.add(attn.out.module)
                    yield f"{stack.prefix}.{i}.{name}", attn


def plan_fold_value_biases(native: ResolvedModel, folds_norms: bool) -> Plan:
    """Move every b_V into b_O.

    The rows of a pattern sum to one, so b_V adds the same everywhere: `b_V W_O`, summed over heads.

    Args:
        native: the model.
        folds_norms: whether the biases of norms are folded into b_V before.
    """
    plan = Plan("fold_value_biases")
    read_elsewhere = any(attn.v is None for _, attn in attentions(native))
    for name, attn in attentions(native):
        why = next(value_obstacles(attn, read_elsewhere), None)
        if attn.v is not None and _has_bias(attn.v, folds_norms):
            if why is None:
                plan.do(name, partial(fold_one, attn))
            else:
                plan.leave(name, why)
    return plan


def _has_bias(v: Role, folds_norms: bool) -> bool:
    found = matrix.of_linear(v.linear)
    if isinstance(found, str):
        return bool(v.linear.bias().any())  # this may run the module
    return found.bias_parameter is not None or (folds_norms and found.takes_bias())


def value_obstacles(attn: AttentionPart, read_elsewhere: bool) -> Iterator[str]:
    """The reasons why b_V does not add the same everywhere, or cannot be moved."""
    if attn.sinks is not None:
        yield "attention sinks take a part of the pattern, so its rows do not sum to one"
    if attn.gated:
        yield "z is gated or normalised before it is projected"
    if attn.mask_from_v:
        yield "the mask is computed from the values"
    if attn.v_norm is not None or attn.clip is not None:
        yield "values are normalised or clipped after their bias"
    if attn.v is not None and attn.v.bias is not None:
        yield "the bias of the values is held apart from their projection"
    if read_elsewhere:
        yield "some layers use an earlier layer's values"
    for linear in (attn.out, *(role.linear for role in (attn.v,) if role is not None)):
        found = matrix.of_linear(linear)
        if isinstance(found, str):
            yield found
        elif linear is attn.out and not found.takes_bias():
            yield f"the output projection ({type(linear.module).__name__}) cannot have a bias"
    if attn.v is not None and attn.k is not None and _overlap(attn.v, attn.k):
        yield "keys and values are the same tensor"


def _overlap(v: Role, k: Role) -> bool:
    if v.linear.module is not k.linear.module:
        return False
    marks = torch.zeros(v.linear.n_out)
    v.layout.assign(marks, torch.ones_like(v.layout.split(marks)))
    return bool(k.layout.split(marks).any())


def fold_one(attn: AttentionPart, undo_log: UndoLog) -> None:
    """Move the b_V of one module into its b_O."""
    v, out = attn.v, matrix.of_linear(attn.out)
    assert v is not None
    assert isinstance(out, Matrix)
    source = matrix.of_linear(v.linear)
    assert isinstance(source, Matrix)
    whole = source.read_bias()
    heads = v.layout.split(whole) * v.scale
    if not heads.any():
        return
    added = _through_heads(heads, out.read(), attn.n_heads)
    out.write_bias(undo_log, out.read_bias() + added)
    own = source.bias_parameter
    assert own is not None
    undo_log.write(own, v.layout.merge(whole, torch.zeros_like(heads)))


def _through_heads(b_V: Tensor, out: Tensor, n_heads: int) -> Tensor:
    """`b_V W_O`, summed over heads; the bias of a key/value head counts for each of its queries."""
    W_O = per_head_out(out, n_heads)
    return torch.einsum("hd,hdm->m", repeat_kv(wide(b_V), n_heads, axis=0).to(W_O), W_O)

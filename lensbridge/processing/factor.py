"""refactor_factored_attn_matrices: the same QK and OV products from orthogonal factors."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lensbridge.native.parts import AttentionPart, BlockPart, ResolvedModel, Role
from lensbridge.processing import matrix
from lensbridge.processing.accounting import strangers
from lensbridge.processing.matrix import Matrix
from lensbridge.processing.plan import Plan
from lensbridge.processing.readers import processed_stacks
from lensbridge.processing.undo_log import UndoLog
from lensbridge.processing.values import attentions, fold_one, value_obstacles
from lensbridge.tensors.layouts import per_head_in, per_head_out


def plan_refactor(native: ResolvedModel) -> Plan:
    """W_Q and W_K become `U sqrt(S)` and `V sqrt(S)` of QK, W_V and W_O `U S` and `V^T` of OV.

    The biases of q and k count as one more row of their weights. Those of v are folded into b_O.
    """
    plan = Plan("refactor_factored_attn_matrices")
    unknown = _inner_strangers(native)
    for name, attn in attentions(native):
        why = next(_obstacles(attn, unknown.get(id(attn), ())), None)
        if why is None:
            plan.do(name, partial(_refactor, attn))
        else:
            plan.leave(name, why)
    return plan


def _inner_strangers(native: ResolvedModel) -> dict[int, list[str]]:
    """Parameters inside attention modules that the description does not name."""
    found: dict[int, list[str]] = {}
    for stack in processed_stacks(native):
        for block in stack.blocks:
            unknown = strangers(block)
            for branch, attn in _attention_of(block):
                found[id(attn)] = [path for path, where in unknown.items() if where == branch]
    return found


def _attention_of(block: BlockPart) -> Iterator[tuple[str, AttentionPart]]:
    for branch, attn in (("attn", block.attn), ("cross", block.cross)):
        if attn is not None:
            yield branch, attn


def _obstacles(attn: AttentionPart, unknown: "list[str] | tuple[()]") -> Iterator[str]:
    if attn.rotary:
        yield "rotary is applied between W_Q and W_K, so QK differs with the distance"
    if attn.n_kv != attn.n_heads:
        yield "several query heads share a key/value head"
    if attn.q_norm is not None or attn.k_norm is not None or attn.clip is not None:
        yield "queries and keys are normalised or clipped after their projections"
    if attn.latent is not None:
        yield "keys and values come from a latent"
    if attn.q is None:
        yield "no projections to its queries, keys and values are described"
        return
    if attn.k is None or attn.v is None:
        yield "the layer uses another layer's keys and values"
        return
    if any(role.scale != 1.0 or role.in_scale != 1.0 for role in (attn.q, attn.k, attn.v)):
        yield "a projection's output is multiplied"
    if any(role.bias is not None for role in (attn.q, attn.k, attn.v)):
        yield "a projection's bias is held apart from it"
    for path in unknown:
        yield f"{path} is not described, so whether it changes queries and keys is not known"
    for role in (attn.q, attn.k):
        found = matrix.of_linear(role.linear)
        if isinstance(found, str):
            yield found
    yield from value_obstacles(attn, read_elsewhere=False)


def _refactor(attn: AttentionPart, undo_log: UndoLog) -> None:
    assert attn.q is not None
    assert attn.k is not None
    assert attn.v is not None
    fold_one(attn, undo_log)
    left, right = even_factors(_with_bias(attn.q), _with_bias(attn.k))
    _put(attn.q, left, undo_log)
    _put(attn.k, right, undo_log)
    out = matrix.of_linear(attn.out)
    assert isinstance(out, Matrix)
    U, S, V = svd_of_product(_with_bias(attn.v)[:, :-1], per_head_out(out.read(), attn.n_heads).mT)
    _put(attn.v, torch.cat([U * S.unsqueeze(-2), torch.zeros_like(U[:, :1])], dim=1), undo_log)
    out.write(undo_log, V.mT.flatten(0, 1))


def _matrix(role: Role) -> Matrix:
    found = matrix.of_linear(role.linear)
    assert isinstance(found, Matrix)
    return found


def _with_bias(role: Role) -> Tensor:
    """Shapes: `[head, d_model + 1, d_head]`; the bias is the weight of an input that is 1."""
    own = _matrix(role)
    bias = role.layout.split(own.read_bias())
    return torch.cat([per_head_in(own.read(), role.layout), bias.unsqueeze(-2)], dim=-2)


def _put(role: Role, heads: Tensor, undo_log: UndoLog) -> None:
    """Write a role's part of its projection, and its last row as the bias if there is one."""
    own = _matrix(role)
    weight = own.read()
    own.write(undo_log, role.layout.merge(weight, heads[:, :-1].movedim(0, -2)))
    if own.bias_parameter is not None:
        own.write_bias(undo_log, role.layout.merge(own.read_bias(), heads[:, -1]))


def svd_of_product(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of `left @ right^T`, without that product; with as many columns as the factors.

    The signs are fixed: in each column of U, the entry of largest absolute value is positive.

    Shapes: `[head, m, d]` and `[head, n, d]` -> `[head, m, d]`, `[head, d]`, `[head, n, d]`
    """
    Q_left, R_left = torch.linalg.qr(left)
    Q_right, R_right = torch.linalg.qr(right)
    u, S, vh = torch.linalg.svd(R_left @ R_right.mT, full_matrices=False)
    U, V = Q_left @ u, Q_right @ vh.mT
    largest = U.gather(-2, U.abs().argmax(-2, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(U)
    missing = left.shape[-1] - S.shape[-1]  # heads that are wider than the stream
    return F.pad(U * sign, (0, missing)), F.pad(S, (0, missing)), F.pad(V * sign, (0, missing))


def even_factors(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors with the same product, whose columns are orthogonal and equal in norm."""
    U, S, V = svd_of_product(left, right)
    root = S.sqrt().unsqueeze(-2)
    return U * root, V * root

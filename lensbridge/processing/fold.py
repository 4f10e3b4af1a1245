"""fold_ln: fold gains and biases of norms into the matrices that read them."""

from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from lensbridge.native.holding import held as held_as
from lensbridge.native.norm import Norm
from lensbridge.native.parts import ResolvedModel
from lensbridge.processing.matrix import Matrix, obstacle, places, untie, wide
from lensbridge.processing.plan import Plan
from lensbridge.processing.readers import Reading, readings
from lensbridge.processing.undo_log import UndoLog


def plan_fold_ln(native: ResolvedModel) -> Plan:
    """Fold every norm that can be folded between the stream and a branch or the head.

    A matrix W that reads `x * g + b` becomes `diag(g) W` and gets the bias `b W`. After a
    LayerNorm, whose output has mean zero, W is also centred over its input.
    """
    plan = Plan("fold_ln")
    found = readings(native)
    readers = Counter(id(matrix.parameter) for one in found for matrix in one.readers)
    held = places(native.core)
    head = None if native.unembed is None else native.unembed.module
    for reading in found:
        own = [*_sharing(reading, readers, held, head), *_obstacles(reading)]
        why = next(iter([*reading.hindrances, *own]), None)
        for name in reading.names:
            if why is not None:
                plan.leave(name, why)
            else:
                plan.done.append(name)
        if why is None:
            plan.rewrites.append(partial(_fold, native, reading))
    return plan


def _sharing(
    reading: Reading,
    readers: Counter[int],
    held: dict[int, list[tuple[nn.Module, str, str]]],
    head: nn.Module | None,
) -> Iterator[str]:
    """The reasons why the weight of a reader cannot be changed only for this norm."""
    own = {(one.module, one.weight) for one in reading.readers}
    for one in reading.readers:
        if readers[id(one.parameter)] > 1:
            yield "a matrix that reads it reads another norm too"
        others = [
            path for module, name, path in held[id(one.parameter)] if (module, name) not in own
        ]
        if others and one.module is not head:  # the head is untied
            yield f"a matrix that reads it shares its weight with {others[0]}"


def _obstacles(reading: Reading) -> Iterator[str]:
    """The reasons in the norm and in its readers why it cannot be folded."""
    norm, parameters = reading.norm, dict(reading.norm.module.named_parameters())
    if not set(parameters) <= {norm.gain_name, norm.bias_name}:
        yield f"{type(norm.module).__name__} has more than a gain and a bias"
        return
    if (
        norm.gain_name in parameters
        and (why := obstacle(held_as(norm.module, norm.gain_name))) is not None
    ):
        yield f"the norm {why}"
        return
    biased = norm.bias_name in parameters and bool(parameters[norm.bias_name].any())
    for one in reading.readers:
        if one.width != norm.width:
            yield f"a {type(one.module).__name__} reads a width of {one.width}, not {norm.width}"
        elif biased and not one.takes_bias():
            yield f"it has a bias, and {type(one.module).__name__} cannot have one"


def _fold(native: ResolvedModel, reading: Reading, undo_log: UndoLog) -> None:
    norm = reading.norm
    gain, bias = _gain(norm), wide(norm.bias().detach())
    for matrix in reading.readers:
        if native.unembed is not None and matrix.module is native.unembed.module:
            untie(native, undo_log)
        _into(matrix, norm, gain, bias, undo_log)
    _make_plain(norm, undo_log)


def _gain(norm: Norm) -> Tensor:
    """The gain, in full precision even where 1 + weight would be rounded."""
    weight = norm.module._parameters.get(norm.gain_name)
    if weight is None:
        return wide(norm.gain())
    return wide(weight.detach()) + (1.0 if norm.unit_offset else 0.0)


def _into(matrix: Matrix, norm: Norm, gain: Tensor, bias: Tensor, undo_log: UndoLog) -> None:
    weight = matrix.read()
    gain, bias = gain.to(weight), bias.to(weight)
    if bool(bias.any()):
        added = torch.einsum("m,...mf->...f", bias, weight) * matrix.in_scale
        matrix.write_bias(undo_log, matrix.read_bias() + added)
    folded = weight * gain.unsqueeze(-1)
    if norm.kind == "LN":
        folded = folded - folded.mean(-2, keepdim=True)
    matrix.write(undo_log, folded)


def _make_plain(norm: Norm, undo_log: UndoLog) -> None:
    """Set the gain to one and the bias to zero."""
    names = (norm.gain_name, norm.bias_name)
    weight, bias = (norm.module._parameters.get(name) for name in names)
    if weight is not None:
        undo_log.write(weight, torch.full_like(weight, 0.0 if norm.unit_offset else 1.0))
    if bias is not None:
        undo_log.write(bias, torch.zeros_like(bias))

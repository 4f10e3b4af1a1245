"""Rows of positions that a model makes longer than its input: by a prompt, or up to a window."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lensbridge.derive.layer import close
from lensbridge.derive.trace import Trace, TracedCall


def runs_of(trace: Trace, stream: Tensor, value: Tensor) -> Iterator[Tensor]:
    """The stream, or its positions next to one another that may be those of a shorter value.

    Args:
        trace: the trace.
        stream: `[b, p, m]`.
        value: a value that has one position for each id of an input, if it is shorter.
    """
    if stream.numel() == value.numel() and stream.shape[-1] == value.shape[-1]:
        yield stream
        return
    alike = stream.ndim == value.ndim == 3 and stream.shape[::2] == value.shape[::2]
    if alike and value.shape[1] < stream.shape[1] and value.shape[1] in _lengths(trace):
        yield from stream.unfold(1, value.shape[1], 1).transpose(-1, -2).unbind(1)


def _lengths(trace: Trace) -> set[int]:
    """How many positions the inputs have that hold ids."""
    return {
        one.shape[1]
        for one in trace.inputs.values()
        if isinstance(one, Tensor) and one.ndim == 2 and not one.is_floating_point()
    }


def reads_end(trace: Trace, stream: Tensor, given: Tensor) -> bool:
    """Whether a module is given the end of a stream, or the tokens' positions of it."""
    parts = runs_of(trace, stream, given)
    return any(part.shape == given.shape and close(given, part, 1e-6) for part in parts)


def at_tokens(trace: Trace, token: TracedCall, value: Tensor) -> Tensor:
    """A value at the positions at which the embedding is given the ids of an input."""
    ids = token.inputs[0] if token.inputs else None
    for one in trace.inputs.values():
        if ids is None or ids.ndim != 2 or not isinstance(one, Tensor) or one.ndim != 2:
            continue
        for start in range(ids.shape[1] - one.shape[1] + 1):
            part = slice(start, start + one.shape[1])
            if torch.equal(ids[:, part].cpu().long(), one.cpu().long()):
                return value[:, part]
    return value

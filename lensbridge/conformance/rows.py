"""Where the tokens are in a stack's rows, which the model may make longer than its input.

CPM-Ant puts a learned prompt before the tokens; Longformer and PEGASUS-X fill a row up to a
multiple of their window.
"""

from torch import Tensor

from lensbridge.conformance.subject import Subject


def at_tokens(subject: Subject, at: str, value: Tensor) -> Tensor:
    """A value at the positions of the tokens that a stack is given; whole if it has no others.

    Args:
        subject: the subject.
        at: the beginning of the stack's names outside the blocks.
        value: `[batch, pos, ...]`.
    """
    ids = subject.ids_of(at)
    if ids is None or value.ndim < 3 or value.shape[1] <= ids.shape[1]:
        return value
    start = _first_position(subject, at, ids)
    if start is None or start + ids.shape[1] > value.shape[1]:
        return value
    return value[:, start : start + ids.shape[1]]


def _first_position(subject: Subject, at: str, ids: Tensor) -> int | None:
    """The first position of the stream that another first token changes."""
    stack = subject.stacks[at]
    first = f"{stack.prefix}.0.hook_resid_pre"
    stream = subject.clean.values.get(first)
    longer = stream is not None and stream.ndim == 3 and stream.shape[1] > ids.shape[1]
    if stream is None or not longer or stack.end_to_end or subject.merges_pictures:
        return None
    name = next(key for key, value in subject.inputs.items() if value is ids)
    other = ids.clone()
    other[:, 0] = (other[:, 0] == 7) + 7
    changed = subject.read([first], inputs={**subject.inputs, name: other})[first]
    moved = (changed != stream).any(-1).any(0).nonzero()
    return int(moved[0]) if len(moved) else None

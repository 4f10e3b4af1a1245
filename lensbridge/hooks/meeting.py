"""Ranks that share one model meet before they hook it and before they run it.

Each run of a tensor-parallel model communicates, and so does each hook on a tensor that is in
pieces. A rank that did something else than the others would wait for ever, or mix up their tensors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from torch import Tensor

from lensbridge.hooks.callbacks import Callback
from lensbridge.native.agreement import agree
from lensbridge.native.pieces import Sharding

_MOST = 6
"""How many points a message names."""

_ADVICE = (
    "Write what runs or hooks a tensor-parallel model so that every rank does it, with the same "
    "input, names and order; only printing and saving belong under `if rank == 0`."
)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of one model meet."""

    sharding: Sharding

    def to_hook(self, callbacks: Iterable[Callback]) -> None:
        """Meet before callbacks are put on the model.

        Raises:
            RanksError: another rank does something else, or does not come.
        """
        self._agree(f"put hooks on the model ({_told(callbacks)})")

    def to_run(self, callbacks: Iterable[Callback], inputs: Mapping[str, Any]) -> None:
        """Meet before the model is run.

        Raises:
            RanksError: another rank does something else, or does not come.
        """
        given = ", ".join(f"{name} {_seen(value)}" for name, value in inputs.items())
        self._agree(f"run the model{f' on {given}' if given else ''} with {_told(callbacks)}")

    def _agree(self, what: str) -> None:
        agree(what, self.sharding.mesh.get_group(), _ADVICE)


def _told(callbacks: Iterable[Callback]) -> str:
    """The names of callbacks; of many, some and a sum over all."""
    names = [f"{one.kind} {one.name}" for one in callbacks]
    if len(names) <= _MOST:
        return ", ".join(names) or "no hooks"
    shown = ", ".join(names[:_MOST])
    return f"{shown} and {len(names) - _MOST} more, {_sum('|'.join(names).encode())}"


def _seen(value: Any) -> str:
    """An input: its shape, and a sum over it where it holds ids."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = str(list(value.shape))
    if value.is_floating_point() or value.is_meta:
        return shape
    return f"{shape} {_sum(value.cpu().contiguous().numpy().tobytes())}"


def _sum(data: bytes) -> str:
    return f"#{blake2b(data, digest_size=4).hexdigest()}"

"""Ranks that share one model meet before they hook it and before they run it.

Each run of a tensor-parallel model communicates, and so does each hook on a tensor that is in
pieces. A rank that did something else than the others would wait for ever, or mix up their tensors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from torch import Tensor, nn

from lensbridge.hooks.callbacks import Callback
from lensbridge.native.agreement import agree
from lensbridge.native.calling import named_arguments
from lensbridge.native.pieces import Sharding

_MOST = 6
"""How many points a message names."""

_ADVICE = (
    "Write what runs or hooks a tensor-parallel model so that every rank does it, with the same "
    "input, names, order and random seed; only printing and saving belong under `if rank == 0`."
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

    @contextmanager
    def before_passes(
        self, root: nn.Module, listening: Callable[[], Iterable[Callback]]
    ) -> Iterator[None]:
        """Inside, the ranks meet before every pass of the model.

        Args:
            root: the model.
            listening: gives the callbacks that act in a pass.

        Raises:
            RanksError: another rank does something else, or does not come.
        """

        def meet(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._to_run(listening(), named_arguments(module, args, kwargs))

        handle = root.register_forward_pre_hook(meet, prepend=True, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _to_run(self, callbacks: Iterable[Callback], inputs: Mapping[str, Any]) -> None:
        tensors = {name: one for name, one in inputs.items() if isinstance(one, Tensor)}
        given = ", ".join(f"{name} {_seen(value)}" for name, value in tensors.items())
        self._agree(f"run the model on {given} with {_told(callbacks)}")

    def _agree(self, what: str) -> None:
        agree(what, self.sharding.mesh.get_group(), _ADVICE)


def _told(callbacks: Iterable[Callback]) -> str:
    """The names of callbacks; of many, some and a sum over all."""
    names = [f"{one.kind} {one.name}" for one in callbacks]
    if len(names) <= _MOST:
        return ", ".join(names) or "no hooks"
    shown = ", ".join(names[:_MOST])
    return f"{shown} and {len(names) - _MOST} more, {_sum('|'.join(names).encode())}"


def _seen(value: Tensor) -> str:
    """An input: its shape, and a sum over it where it holds ids."""
    shape = str(list(value.shape))
    if value.is_floating_point() or value.is_meta:
        return shape
    return f"{shape} {_sum(value.cpu().contiguous().numpy().tobytes())}"


def _sum(data: bytes) -> str:
    return f"#{blake2b(data, digest_size=4).hexdigest()}"

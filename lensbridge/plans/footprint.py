"""Footprint: how many bytes of tensors a computation holds at its peak."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Footprint(TorchDispatchMode):
    """Counts the memory that is allocated inside the context, and freed again.

    Attributes:
        peak: the most bytes at one time, of all devices together.
        peaks: the most bytes at one time on each device.

    Example:
        >>> import torch
        >>> with Footprint() as found:
        ...     for _ in range(3):
        ...         total = torch.zeros(250).exp().sum()
        >>> 2000 <= found.peak < 2100  # zeros and their exponential; earlier ones are freed
        True
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.peaks: dict[str, int] = {}
        self._alive: dict[int, tuple[str, int, weakref.ref[Any]]] = {}
        self._now: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            self._note(value, counts=False)  # weights: views of them come out
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            self._note(value, counts=True)
        return out

    def _note(self, value: Any, counts: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self._alive:  # a view, or written in place
            return
        place = str(value.device)
        self._alive[key] = place, size, weakref.ref(storage, partial(self._free, key))
        self._now[place] = self._now.get(place, 0) + size
        self.peaks[place] = max(self.peaks.get(place, 0), self._now[place])
        self.peak = max(self.peak, sum(self._now.values()))

    def _free(self, key: int, ref: Any) -> None:
        place, size, _ = self._alive.pop(key)
        self._now[place] -= size

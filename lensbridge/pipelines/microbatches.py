"""The microbatch that a stage is at, and activations of all of them put together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import Keep, batch_axis, version_of
from lensbridge.errors import HookError
from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.scope import Aside


@dataclass
class Chunk:
    """Which microbatch is computed now, forward or backward; None between them."""

    number: int | None = None

    @contextmanager
    def at(self, number: int) -> Iterator[None]:
        """Inside, this microbatch is computed."""
        before, self.number = self.number, number
        try:
            yield
        finally:
            self.number = before


def watch(stage: Any, chunk: Chunk, aside: Aside) -> None:
    """Let a stage of PyTorch tell which microbatch it computes.

    It runs the model once beforehand, on tensors without values, to find shapes: no hook acts
    there.
    """
    for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
        if hasattr(stage, name):
            setattr(stage, name, _told(getattr(stage, name), chunk))
    for name in ("_prepare_forward_infra", "_prepare_backward_infra"):
        if hasattr(stage, name):
            setattr(stage, name, _unseen(getattr(stage, name), aside))


def _told(run: Callable[..., Any], chunk: Chunk) -> Callable[..., Any]:
    @wraps(run)
    def told(number: int, *args: Any, **kwargs: Any) -> Any:
        with chunk.at(number):
            return run(number, *args, **kwargs)

    return told


def _unseen(run: Callable[..., Any], aside: Aside) -> Callable[..., Any]:
    @wraps(run)
    def unseen(*args: Any, **kwargs: Any) -> Any:
        token = aside.enter()
        try:
            return run(*args, **kwargs)
        finally:
            aside.leave(token)

    return unseen


@dataclass
class Gatherer:
    """Readers of points, which keep what each microbatch has there.

    Args:
        chunk: which microbatch is computed.
        axes: the points, with the axes of their values.
        keep: how values are kept.
    """

    chunk: Chunk
    axes: dict[str, str]
    keep: Keep
    kept: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def callbacks(self, required: bool) -> list[Callback]:
        """A reader for each point."""
        return [Callback(name, "read", self._reader(name), name, required) for name in self.axes]

    def _reader(self, name: str) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            number = self.chunk.number
            if number is None:
                raise HookError(
                    f"{name} was computed outside the microbatches of a schedule. Inside "
                    "caching(), run the stage by schedule.step(...)."
                )
            found = self.kept.setdefault(name, {})
            if number in found:  # the next step of the schedule
                found.clear()
            found[number] = self.keep.capture(value, self.axes[name], True)

        return read

    def whole(self) -> dict[str, Tensor]:
        """The activations of the whole batch, in the order of its rows."""
        return {name: self._joined(name, found) for name, found in self.kept.items()}

    def _joined(self, name: str, found: dict[int, Tensor]) -> Tensor:
        parts = [found[number] for number in sorted(found)]
        letters = self.axes[name].split()
        axis = letters.index("t") if "t" in letters else batch_axis(self.axes[name])
        if axis is None:
            raise HookError(
                f"{name} has axes {self.axes[name]!r} and no batch, so its microbatches cannot be "
                "put together. Read it in a hook, where hook.microbatch says which one it is."
            )
        if letters[axis] == "1" and all(one.shape[axis] == 1 for one in parts):
            return parts[0]  # rows share it
        return torch.cat(parts, axis)


class StepCache(ActivationCache):
    """The activations of the last step of a schedule. It is filled when its context ends."""

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        """Hold these activations."""
        self._tensors.update(tensors)
        self._versions.update({name: version_of(one) for name, one in tensors.items()})

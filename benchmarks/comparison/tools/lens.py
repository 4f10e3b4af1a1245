"""lensbridge."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

import lensbridge
from benchmarks.comparison.families import Family
from benchmarks.comparison.tools.base import Change, Place, Tool
from benchmarks.comparison.tools.named import Named, hook, point


class Lens(Named):
    """`lensbridge.load(model)`."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family, lensbridge.load(model))

    def gradient(self, ids: Tensor, place: Place, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        return self.hooked.gradients(ids, point(place), of=scalar).gradients[point(place)]

    def generate(self, ids: Tensor, place: Place, change: Change, new: int, **how: Any) -> Tensor:
        with self.hooked.hooks([hook(place, change)]):
            return self.greedy(ids, new, **how)


TOOL = Tool("lensbridge", "lensbridge", Lens)

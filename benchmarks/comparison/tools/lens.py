"""lensbridge."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

import lensbridge
from benchmarks.comparison.families import Family
from benchmarks.comparison.tools.base import Change, Opened, Place, Tool

NAMES = {"z": "attn.hook_z", "pattern": "attn.hook_pattern"}


def point(place: Place) -> str:
    """The canonical name of a point."""
    kind, layer = place
    return f"blocks.{layer}.{NAMES.get(kind, f'hook_{kind}')}"


class Lens(Opened):
    """`lensbridge.load(model)`."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        self.lens = lensbridge.load(model)

    def points(self) -> tuple[str, ...]:
        found = super().points()
        return tuple(one for one in found if point((one, 0)) in self.lens.hook_dict)

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.lens(ids, attention_mask=mask)

    def read(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        names = [point(place) for place in places]
        logits, cache = self.lens.run_with_cache(ids, names_filter=names)
        return logits, [cache[name] for name in names]

    def edit(self, ids: Tensor, place: Place, change: Change) -> Tensor:
        return self.lens.run_with_hooks(ids, fwd_hooks=[_hook(place, change)])

    def gradient(self, ids: Tensor, place: Place, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        return self.lens.gradients(ids, point(place), of=scalar).gradients[point(place)]

    def generate(self, ids: Tensor, place: Place, change: Change, new: int, **how: Any) -> Tensor:
        with self.lens.hooks([_hook(place, change)]):
            return self.lens.generate(
                ids,
                max_new_tokens=new,
                do_sample=False,
                stop_at_eos=False,
                verbose=False,
                return_type="tokens",
                **how,
            )

    def keys(self, layer: int) -> Tensor:
        return self.lens.W_K[layer]

    def query_key(self, layer: int) -> Tensor:
        return self.lens.QK[layer].AB

    def misspell(self, ids: Tensor) -> object:
        return self.lens.run_with_cache(ids, names_filter="blocks.0.hook_resid_pots")

    def misspell_among(self, ids: Tensor) -> object:
        names = ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pots"]
        return self.lens.run_with_cache(ids, names_filter=names)


def _hook(place: Place, change: Change) -> tuple[str, Any]:
    return point(place), lambda value, hook: change(value)


TOOL = Tool("lensbridge", "lensbridge", Lens)

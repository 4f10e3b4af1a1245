"""Tools that share names and calls: TransformerLens and lensbridge."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.comparison.families import Family
from benchmarks.comparison.tools.base import Change, Opened, Place

NAMES = {"z": "attn.hook_z", "pattern": "attn.hook_pattern"}


def point(place: Place) -> str:
    """The canonical name of a point."""
    kind, layer = place
    return f"blocks.{layer}.{NAMES.get(kind, f'hook_{kind}')}"


def hook(place: Place, change: Change) -> tuple[str, Any]:
    """A hook that changes an activation."""
    return point(place), lambda value, hook: change(value)


class Named(Opened):
    """A model that such a tool has opened.

    Args:
        model: the HuggingFace model.
        family: of the model.
        hooked: the model as the tool has it.
    """

    def __init__(self, model: Any, family: Family, hooked: Any) -> None:
        super().__init__(model, family)
        self.hooked = hooked

    def points(self) -> tuple[str, ...]:
        found = super().points()
        return tuple(one for one in found if point((one, 0)) in self.hooked.hook_dict)

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.hooked(ids, attention_mask=mask)

    def read(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        names = [point(place) for place in places]
        logits, cache = self.hooked.run_with_cache(ids, names_filter=names)
        return logits, [cache[name] for name in names]

    def edit(self, ids: Tensor, place: Place, change: Change) -> Tensor:
        return self.hooked.run_with_hooks(ids, fwd_hooks=[hook(place, change)])

    def greedy(self, ids: Tensor, new: int, **how: Any) -> Tensor:
        """Greedy tokens of the tool's `generate`."""
        return self.hooked.generate(
            ids,
            max_new_tokens=new,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            return_type="tokens",
            **how,
        )

    def keys(self, layer: int) -> Tensor:
        return self.hooked.W_K[layer]

    def query_key(self, layer: int) -> Tensor:
        return self.hooked.QK[layer].AB

    def misspell(self, ids: Tensor) -> object:
        return self.hooked.run_with_cache(ids, names_filter="blocks.0.hook_resid_pots")

    def misspell_among(self, ids: Tensor) -> object:
        names = ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pots"]
        return self.hooked.run_with_cache(ids, names_filter=names)

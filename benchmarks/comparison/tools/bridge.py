"""TransformerLens: `TransformerBridge.boot_transformers` on a model that is there already."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.comparison.families import Family
from benchmarks.comparison.tokenizer import demo_tokenizer
from benchmarks.comparison.tools.base import Change, Opened, Place, Tool
from benchmarks.comparison.tools.lens import point


def boot(model: Any) -> Any:
    """TransformerLens on a model object: its documented way for models that are loaded."""
    return TransformerBridge.boot_transformers(
        "a-model", hf_model=model, tokenizer=demo_tokenizer(), dtype=model.dtype, device="cpu"
    )


class Bridge(Opened):
    """Names are those that lensbridge has too."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        self.bridge = boot(model)

    def points(self) -> tuple[str, ...]:
        found = super().points()
        return tuple(one for one in found if point((one, 0)) in self.bridge.hook_dict)

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.bridge(ids, attention_mask=mask)

    def read(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        names = [point(place) for place in places]
        logits, cache = self.bridge.run_with_cache(ids, names_filter=names)
        return logits, [cache[name] for name in names]

    def edit(self, ids: Tensor, place: Place, change: Change) -> Tensor:
        return self.bridge.run_with_hooks(ids, fwd_hooks=[_hook(place, change)])

    def gradient(self, ids: Tensor, place: Place, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        kept: list[Tensor] = []
        keep = [(point(place), lambda grad, hook: kept.append(grad.clone()))]
        with self.bridge.hooks(bwd_hooks=keep):
            scalar(self.bridge(ids)).backward()
        return kept[0]

    def generate(self, ids: Tensor, place: Place, change: Change, new: int, **how: Any) -> Tensor:
        with self.bridge.hooks(fwd_hooks=[_hook(place, change)]):
            if how:
                return self.bridge.hf_generate(
                    ids, max_new_tokens=new, do_sample=False, return_type="tokens", **how
                )
            return self._own_loop(ids, new)

    def generate_uncached(self, ids: Tensor, place: Place, change: Change, new: int) -> Tensor:
        with self.bridge.hooks(fwd_hooks=[_hook(place, change)]):
            return self._own_loop(ids, new, use_past_kv_cache=False)

    def _own_loop(self, ids: Tensor, new: int, **how: Any) -> Tensor:
        return self.bridge.generate(
            ids,
            max_new_tokens=new,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            return_type="tokens",
            **how,
        )

    def keys(self, layer: int) -> Tensor:
        return self.bridge.W_K[layer]

    def query_key(self, layer: int) -> Tensor:
        return self.bridge.QK[layer].AB

    def misspell(self, ids: Tensor) -> object:
        return self.bridge.run_with_cache(ids, names_filter="blocks.0.hook_resid_pots")

    def misspell_among(self, ids: Tensor) -> object:
        names = ["blocks.0.hook_resid_post", "blocks.0.hook_resid_pots"]
        return self.bridge.run_with_cache(ids, names_filter=names)


def _hook(place: Place, change: Change) -> tuple[str, Any]:
    return point(place), lambda value, hook: change(value)


TOOL = Tool("TransformerLens", "transformer-lens", Bridge)

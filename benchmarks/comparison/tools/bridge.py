"""TransformerLens: `TransformerBridge.boot_transformers` on a model that is there already."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from benchmarks.comparison.families import Family
from benchmarks.comparison.tokenizer import demo_tokenizer
from benchmarks.comparison.tools.base import Change, Place, Tool
from benchmarks.comparison.tools.named import Named, hook, point


def boot(model: Any) -> Any:
    """TransformerLens on a model object: its documented way for models that are loaded."""
    return TransformerBridge.boot_transformers(
        "a-model", hf_model=model, tokenizer=demo_tokenizer(), dtype=model.dtype, device="cpu"
    )


class Bridge(Named):
    """Names are those that lensbridge has too."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family, boot(model))

    def gradient(self, ids: Tensor, place: Place, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        kept: list[Tensor] = []
        keep = [(point(place), lambda grad, hook: kept.append(grad.clone()))]
        with self.hooked.hooks(bwd_hooks=keep):
            scalar(self.hooked(ids)).backward()
        return kept[0]

    def generate(self, ids: Tensor, place: Place, change: Change, new: int, **how: Any) -> Tensor:
        with self.hooked.hooks(fwd_hooks=[hook(place, change)]):
            if how:
                return self.hooked.hf_generate(
                    ids, max_new_tokens=new, do_sample=False, return_type="tokens", **how
                )
            return self.greedy(ids, new)

    def generate_uncached(self, ids: Tensor, place: Place, change: Change, new: int) -> Tensor:
        with self.hooked.hooks(fwd_hooks=[hook(place, change)]):
            return self.greedy(ids, new, use_past_kv_cache=False)


TOOL = Tool("TransformerLens", "transformer-lens", Bridge)

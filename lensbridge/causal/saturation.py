"""Effects of queries and keys with softmax computed again, where attention is saturated.

Where a pattern is saturated, its gradient by the scores is almost zero. So the model computes
softmax again with the other run's queries (or keys), and only what comes after the pattern is
estimated to first order.

Source: Kramár et al. 2024, AtP*: An efficient and scalable method for localizing LLM behaviour to
components, section 3.1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.hooks.callbacks import Hook
from lensbridge.nodes.node import setting
from lensbridge.sweeps.base_run import BaseRun

if TYPE_CHECKING:
    from lensbridge.causal.pair import Pair

SCORES, PATTERN, WRITTEN = "attn.hook_attn_scores", "attn.hook_pattern", "hook_attn_out"


@dataclass(frozen=True)
class Repeated:
    """Scores and patterns of every layer with queries or keys of the other run.

    Args:
        unit: "q" or "k".
        each_position: whether the keys of one position change at a time.
        base: activations of the base run.
        patched: scores and patterns with the other run's values, in one layer at a time.
    """

    unit: str
    each_position: bool
    base: ActivationCache
    patched: Mapping[str, Tensor]

    @classmethod
    def run(
        cls,
        pair: "Pair",
        unit: str,
        places: Mapping[str, str],
        each_position: bool,
        base: ActivationCache,
        other: BaseRun,
    ) -> "Repeated":
        """One pass for all layers: the output of each attention is set back to the base run's.

        Args:
            pair: the two inputs.
            unit: "q" or "k".
            places: prefix of each layer -> the point of its queries or keys.
            each_position: as above.
            base: activations of the base run, attention outputs among them.
            other: the other run, with the values at the points.
        """
        noted: dict[str, Tensor] = {}

        def note(value: Tensor, hook: Hook) -> None:
            noted[hook.name] = value.clone()

        hooks: list[tuple[str, Callable[..., Tensor | None]]] = []
        for at, point in places.items():
            hooks.append((point, setting(other.cache[point])))
            hooks += [(f"{at}{SCORES}", note), (f"{at}{PATTERN}", note)]
            hooks.append((f"{at}{WRITTEN}", setting(base[f"{at}{WRITTEN}"])))
        with torch.no_grad():
            pair.model.run_with_hooks(pair.base, hooks)
        return cls(unit, each_position, base, noted)

    def score(self, at: str, n_heads: int, grad: Tensor) -> Tensor:
        """The effect of each head's queries or keys, to first order after the softmax.

        Args:
            at: prefix of the layer.
            n_heads: number of nodes: heads for queries, key/value heads for keys.
            grad: the metric's gradient at the pattern.

        Shapes: `[batch, head, q, k]` -> `[batch, pos, head]`; one position where keys change
            together.
        """
        pattern, now = self.base[f"{at}{PATTERN}"], self.patched[f"{at}{PATTERN}"]
        if self.unit == "q":
            return ((now - pattern) * grad).sum(-1).transpose(1, 2)
        if self.each_position:
            effect = self._of_each_key(at, pattern, grad).sum(-2)
        else:
            effect = ((now - pattern) * grad).sum((-1, -2)).unsqueeze(-1)
        return effect.unflatten(1, (n_heads, -1)).sum(2).transpose(1, 2)

    def _of_each_key(self, at: str, pattern: Tensor, grad: Tensor) -> Tensor:
        """The effect on each row of the pattern of changing one of its scores, for every score.

        Shapes: `[batch, head, q, k]`
        """
        best = pattern.argmax(-1, keepdim=True)
        total = self.base[f"{at}{SCORES}"].gather(-1, best) - pattern.gather(-1, best).log()
        weight = (self.patched[f"{at}{SCORES}"] - total).exp()
        weight = weight.masked_fill(pattern.gather(-1, best) == 0, 0.0)  # a row of padding
        before = (pattern * grad).sum(-1, keepdim=True)
        after = (before - pattern * grad + weight * grad) / (1 - pattern + weight)
        # a row may have one key only: its pattern is 1 whatever the score
        after = after.where(1 - pattern + weight > 0, before)
        return after - before

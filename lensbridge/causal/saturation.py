"""Queries and keys through softmax: what a changed score does to a saturated pattern.

A gradient says that nothing happens where attention is saturated. Here softmax is computed again
with the other run's queries (or keys), natively, and only what lies behind the pattern is taken to
be linear.

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
    """Softmax of every layer with queries or keys of the other run.

    Args:
        unit: "q" or "k".
        each_position: whether the keys of each position change alone.
        base: activations of the base run.
        patched: scores and patterns with the other run's values, each layer by itself.
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
        """One pass for all layers: what each attention writes is put back to the base run's.

        Args:
            pair: the two inputs.
            unit: "q" or "k".
            places: prefix of each layer -> the point of its queries or keys.
            each_position: as above.
            base: with what every attention writes.
            other: with the values at the points.
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
        """The effect of each head's queries or keys, behind softmax to first order.

        Args:
            at: prefix of the layer.
            n_heads: how many nodes there are: heads for queries, key/value heads for keys.
            grad: of the metric by the pattern.

        Shapes: `[batch, head, q, k]` -> `[batch, pos, head]`; keys that change together have one
            position.
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
        """Softmax of each row when one of its scores alone is another, for every score.

        Shapes: `[batch, head, q, k]`
        """
        best = pattern.argmax(-1, keepdim=True)
        total = self.base[f"{at}{SCORES}"].gather(-1, best) - pattern.gather(-1, best).log()
        weight = (self.patched[f"{at}{SCORES}"] - total).exp()
        weight = weight.masked_fill(pattern.gather(-1, best) == 0, 0.0)  # a row of padding
        before = (pattern * grad).sum(-1, keepdim=True)
        after = (before - pattern * grad + weight * grad) / (1 - pattern + weight)
        # without the last score a row can be empty: then the other one has it all
        after = after.where(1 - pattern + weight > 0, before)
        return after - before

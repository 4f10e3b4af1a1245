"""Kinds of steering that keep the size of what they steer, or steer only some positions."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.interventions.arguments import as_value, check_broadcast
from lensbridge.interventions.kinds import Steer
from lensbridge.interventions.region import Region
from lensbridge.interventions.source import SourceValues


@dataclass(frozen=True, eq=False, repr=False)
class NormPreservingSteer(Steer):
    """A direction added to the run's value, which then gets back the norm that it had.

    The value only turns towards the direction. The norm is that over the entries of one position
    (and head).

    Args:
        vector: `[d]`, or anything that broadcasts to the region.
        strength: what the vector is multiplied by.
        unit: as in `Steer`.

    Source: `normalize=True` of repeng's `set_control`.

    Example:
        >>> import torch, lensbridge
        >>> from lensbridge.interventions import NormPreservingSteer
        >>> model = lensbridge.load("demo")
        >>> site, text = ("resid_post", 1), "The Eiffel Tower is in the city of"
        >>> _, before = model.run_with_cache(text, site)
        >>> with model.intervene(NormPreservingSteer(site, torch.ones(128), 5.0)):
        ...     _, after = model.run_with_cache(text, site)
        >>> torch.allclose(before[site].norm(dim=-1), after[site].norm(dim=-1))
        True
    """

    @classmethod
    def of(cls, steer: Steer) -> "NormPreservingSteer":
        """The same steering, with the norm preserved."""
        return cls(**_members(steer))

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        norm = torch.linalg.vector_norm
        old, new = region.value, super().act(region, given)
        wide = torch.promote_types(old.dtype, torch.float32)
        sizes = (norm(one, dim=-1, keepdim=True, dtype=wide) for one in (old, new))
        before, after = sizes
        return torch.where(after > 0, new * (before / after), new).to(old.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class GatedSteer(Steer):
    """A direction added at the positions where the run's value has another direction in it.

    Args:
        vector: `[d]`, or anything that broadcasts to the region: what is added.
        strength: what the vector is multiplied by.
        unit: as in `Steer`.
        gate: `[d]`: the direction that is looked for, such as that of a probe.
        threshold: the score above which a position is steered.
        score: "cosine": that of the value and the gate; "dot": their product, as a probe has it
            (`threshold=-bias`).
        softness: 0: a position is steered or not. Else it is steered by
            `sigmoid((score - threshold) / softness)`.
        invert: steer the positions below the threshold instead.

    Source: conditional activation steering as in Lee et al. 2024.

    Example:
        >>> import torch, lensbridge
        >>> from lensbridge.interventions import GatedSteer
        >>> model = lensbridge.load("demo")
        >>> site, text = ("resid_post", 1), "The Eiffel Tower is in the city of"
        >>> _, before = model.run_with_cache(text, site)
        >>> eiffel = before[site][0, 2]
        >>> with model.intervene(GatedSteer(site, torch.ones(128), gate=eiffel, threshold=0.9)):
        ...     _, after = model.run_with_cache(text, site)
        >>> (before[site] != after[site]).any(-1)[0].nonzero().flatten()
        tensor([2])
    """

    gate: Tensor | None = None
    threshold: float = 0.0
    score: Literal["cosine", "dot"] = "cosine"
    softness: float = 0.0
    invert: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate is None:
            raise InputError("gate is the direction that decides which positions are steered.")
        self._set("gate", torch.as_tensor(as_value(self.gate, "gate")))
        if self.score not in ("cosine", "dot"):
            raise InputError(f"score is 'cosine' or 'dot', not {self.score!r}.")
        if not self.softness >= 0:
            raise InputError(f"softness is 0 or more, not {self.softness!r}.")

    @classmethod
    def of(cls, steer: Steer, gate: Tensor, threshold: float = 0.0, **more: Any) -> "GatedSteer":
        """The same steering, with a gate."""
        return cls(**_members(steer), gate=gate, threshold=threshold, **more)

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        old, new = region.value, super().act(region, given)
        return torch.lerp(old, new, self._opening(old)).to(old.dtype)

    def _opening(self, value: Tensor) -> Tensor:
        """How far the gate is open. Shapes: `[example, pos, (head), entry]` -> `[..., 1]`"""
        assert self.gate is not None
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        gate = self.gate.to(wide)
        found = (wide * gate).sum(-1, keepdim=True)
        if self.score == "cosine":
            sizes = wide.norm(dim=-1, keepdim=True) * gate.norm(dim=-1, keepdim=True)
            found = found / sizes.clamp(min=torch.finfo(wide.dtype).tiny)
        above = found - self.threshold
        above = -above if self.invert else above
        opening = (above / self.softness).sigmoid() if self.softness else (above > 0).to(wide)
        return opening.to(value.dtype)

    def check_value(self, wanted: tuple[int | None, ...], what: str) -> None:
        super().check_value(wanted, what)
        assert self.gate is not None
        check_broadcast(self.gate, wanted, what, "gate")


def _members(steer: Steer) -> dict[str, Any]:
    """What a steering is made of, without what its kind adds."""
    return {one.name: vars(steer)[one.name] for one in fields(Steer)}

"""Points that the native model does not have: values computed from native tensors.

Each has an owner, the native module that is edited in its place. When no callback changed the
value, the owner's output stays the same bit for bit. When one did, or when gradients go through the
value, the output is recomputed from it.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.errors import EditError
from lensbridge.native.linear import fetch
from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.site import Site
from lensbridge.tensors.layouts import Layout

Change: TypeAlias = Literal["none", "connected", "changed"]


def change(read: Tensor, new: Tensor | None) -> Change:
    """What a chain did to a derived value, which decides whether its owner is recomputed.

    "connected": the same numbers, with a graph of their own: gradients flow through the new value,
    and stop there where it has none.
    """
    if new is None:
        return "none"
    if not torch.equal(new.detach(), read.detach()):
        return "changed"
    in_graph = torch.is_grad_enabled() and (new.requires_grad or read.requires_grad)
    return "connected" if in_graph else "none"


def substitute(native: Tensor, recomputed: Tensor, how: Change) -> Tensor:
    """The recomputed tensor; where nothing changed, with the native numbers bit for bit."""
    if how == "changed":
        return recomputed
    return native.detach() + (recomputed - recomputed.detach())


@dataclass(frozen=True)
class NormScaleSite(Site):
    """A norm's divisor. An edit divides by the edited value instead."""

    norm: Norm

    def _stages(self) -> list[Stage]:
        norm = self.norm

        def act(call: Call, chain: Chain) -> None:
            x = call.input
            scale = norm.scale(x)
            new = chain.run(scale)
            how = change(scale, new)
            if how != "none":
                assert new is not None
                normalized = norm.divide(x, new)
                call.notes["normalized"] = normalized
                call.replace_result(substitute(call.result, norm.affine(normalized), how))

        return [Stage(norm.holder, "output", 0, act)]


@dataclass(frozen=True)
class NormalizedSite(Site):
    """A norm's output before gain and bias. An edit applies gain and bias to the edited value."""

    norm: Norm

    def _stages(self) -> list[Stage]:
        norm = self.norm

        def act(call: Call, chain: Chain) -> None:
            normalized = call.notes.get("normalized")
            if normalized is None:
                normalized = norm.normalize(call.input)
            new = chain.run(normalized)
            how = change(normalized, new)
            if how != "none":
                assert new is not None
                call.replace_result(substitute(call.result, norm.affine(new), how))

        return [Stage(norm.holder, "output", 1, act)]


@dataclass(frozen=True)
class SumSite(Site):
    """The sum of the outputs of one or more modules, times a multiplier, plus a bias.

    An edit is divided by the multiplier again, and the last module's output takes the difference.
    """

    modules: tuple[nn.Module, ...]
    scale: Multiplier
    layout: Layout
    bias: tuple[nn.Module, str] | None = None

    def _stages(self) -> list[Stage]:
        def keep(call: Call, chain: Chain) -> None:
            call.memory[self.name, call.module] = call.result

        def act(call: Call, chain: Chain) -> None:
            others = [call.memory[self.name, module] for module in self.modules[:-1]]
            beside = sum(other.view(call.result.shape) for other in others)
            scale = self.scale.value(call.result)
            whole = self.layout.split(beside + call.result) * scale
            bias = self._bias_of(whole)
            read = whole + bias
            new = chain.run(read)
            how = change(read, new)
            if how != "none":
                assert new is not None
                written = self.layout.merge(call.result, (new - bias) / scale) - beside
                call.replace_result(substitute(call.result, written, how))

        first = [Stage(module, "output", 3, keep) for module in self.modules[:-1]]
        return [*first, Stage(self.modules[-1], "output", 3, act)]

    def _bias_of(self, whole: Tensor) -> Tensor | float:
        """The bias with the last axes of the value: of heads, or of channels."""
        if self.bias is None:
            return 0.0
        bias = fetch(*self.bias).to(whole.device)
        return bias.view(whole.shape[-2:]) if len(bias) != whole.shape[-1] else bias


@dataclass(frozen=True)
class ClippedSite(Site):
    """A projection's output after it was clipped, through a layout.

    The captured value is a copy, because some models clip in place. The model clips an edit too, so
    an edit beyond the bound is refused.
    """

    module: nn.Module
    layout: Layout
    bound: float

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            whole = call.result
            read = self.layout.split(whole).clamp(-self.bound, self.bound)
            new = chain.run(read)
            how = change(read, new)
            if how == "none":
                return
            assert new is not None
            if bool((new.abs() > self.bound).any()):
                raise EditError(
                    f"{self.name}: the model clips this to {self.bound:g}, and the edit goes to "
                    f"{float(new.detach().abs().max()):g}. Stay within, or edit a later point."
                )
            # a copy: a hook may return a leaf of autograd, which the model could not clip in place
            call.replace_result(self.layout.merge(whole, new).clone())

        return [Stage(self.module, "output", 2, act)]

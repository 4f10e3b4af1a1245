"""The stacked experts of one mixture: the parameters that hold them, and their activation."""

from typing import Any

from torch import nn

from lensbridge.native.experts import Experts, Portion, Stacked
from lensbridge.native.resolve.finder import Finder
from lensbridge.spec import ExpertLayout, StackedExperts


class ExpertResolver:
    """The experts of the mixtures of one stack."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder

    def experts(
        self, mixture: nn.Module, spec: str | StackedExperts, router: nn.Module, where: str
    ) -> Experts:
        """The experts that a description names."""
        if isinstance(spec, str):
            return self._usual(mixture, spec, where)
        return self._described(mixture, spec, self.router_width(router, where), where)

    def router_width(self, router: nn.Module, where: str) -> int:
        """How many experts a router scores."""
        widths = [int(p.shape[0]) for p in router.parameters() if p.ndim == 2]
        if not widths:
            raise self.finder.mismatch(f"the router '{where}' has no matrix.")
        return widths[-1]

    def choices(self, router: nn.Module, n_experts: int) -> int:
        """How many choices a router scores: the experts, and some that compute nothing (Zaya) or
        that every token is given (Inkling)."""
        widths = [int(one.out_features) for one in router.modules() if isinstance(one, nn.Linear)]
        widths = widths or [int(one.shape[0]) for one in router.parameters() if one.ndim == 2]
        return n_experts if n_experts in widths or not widths else widths[-1]

    def _usual(self, mixture: nn.Module, path: str, where: str) -> Experts:
        """Experts in the parameters and with the attributes that transformers' own have."""
        holder: Any = self.finder.find(mixture, path, f"{where} MoE")
        down = holder._parameters.get("down_proj")
        gated = "gate_up_proj" in holder._parameters
        if down is None or down.ndim != 3 or not (gated or "up_proj" in holder._parameters):
            raise self.finder.mismatch(
                f"{where}: '{path}' ({type(holder).__name__}) does not hold its experts stacked as "
                "gate_up_proj (or up_proj) and down_proj; say experts=None, or "
                "StackedExperts(...) if they are stacked in other parameters."
            )
        layout: ExpertLayout = "in_out" if getattr(holder, "is_transposed", False) else "out_in"
        biased = bool(getattr(holder, "has_bias", False))

        def stacked(name: str, portion: Portion = "whole", writes: bool = False) -> Stacked:
            return Stacked(holder, name, int(down.shape[0]), layout, portion, writes, biased)

        if not gated:
            return Experts(holder, stacked("up_proj"), None, stacked("down_proj", writes=True))
        together = getattr(holder, "is_concatenated", True)
        gate = stacked("gate_up_proj", "first" if together else "even")
        up = stacked("gate_up_proj", "second" if together else "odd")
        # the usual method of transformers' modules, or the activation alone
        activation = None if hasattr(holder, "_apply_gate") else getattr(holder, "act_fn", None)
        return Experts(holder, up, gate, stacked("down_proj", writes=True), activation)

    def _described(self, mixture: nn.Module, spec: StackedExperts, n: int, where: str) -> Experts:
        self._expect_parameters(spec, where)
        holder = self.finder.find(mixture, spec.path, f"{where} MoE")

        def stacked(name: str, portion: Portion = "whole", writes: bool = False) -> Stacked:
            owner, last = self.finder.tensor(holder, name, f"{where} experts")
            found = Stacked(owner, last, n, spec.layout, portion, writes)
            self._expect_stacked(found, name, where)
            return found

        if spec.gate_up is not None:
            gate, up = stacked(spec.gate_up, "first"), stacked(spec.gate_up, "second")
        else:
            gate, up = stacked(str(spec.gate)), stacked(str(spec.up))
        down = stacked(spec.down, writes=True)
        width, neurons = up.weight().shape[1:]
        wanted = (neurons, width)
        for name, one, shape in (("gate", gate, (width, neurons)), ("down", down, wanted)):
            found = tuple(one.weight().shape[1:])
            if found != shape:
                raise self.finder.mismatch(
                    f"{where}: the {name} projection of an expert is {found[0]} to {found[1]}, and "
                    f"with layout={spec.layout!r} the others want {shape[0]} to {shape[1]}."
                )
        activation = self.finder.find(holder, spec.activation, f"{where} experts")
        return Experts(holder, up, gate, down, activation, spec.given)

    def _expect_parameters(self, spec: StackedExperts, where: str) -> None:
        apart = (spec.gate is not None) + (spec.up is not None)
        if apart != (0 if spec.gate_up is not None else 2):
            raise self.finder.mismatch(
                f"{where}: StackedExperts needs gate_up, or both gate and up."
            )

    def _expect_stacked(self, stacked: Stacked, name: str, where: str) -> None:
        """Require a parameter that has the axes of its layout, for as many experts as there are."""
        shape = tuple(stacked.module._parameters[stacked.name].shape)  # type: ignore[union-attr]
        rows = stacked.layout == "neuron_rows"
        fits = len(shape) == (2 if rows else 3)
        fits = fits and (shape[0] % stacked.n == 0 if rows else shape[0] == stacked.n)
        if not fits:
            raise self.finder.mismatch(
                f"{where}: the parameter '{name}' is {list(shape)}, and with layout="
                f"{stacked.layout!r} it would hold the weights of {stacked.n} experts in "
                f"{'rows' if rows else 'its first axis'}."
            )

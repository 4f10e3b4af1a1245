"""Putting one point on one module: what stacks, layers and norms have in common."""

from collections.abc import Iterator

from torch import nn

from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts import ResolvedModel, Role, Writer
from lensbridge.points.names import template
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.sites.derived import NormalizedSite, NormScaleSite, SumSite
from lensbridge.sites.site import InputSite, OutputSite, Site
from lensbridge.tensors import layouts
from lensbridge.tensors.layouts import Layout


class Placing:
    """Makes sites for the points of one model."""

    def __init__(self, native: ResolvedModel) -> None:
        self.native = native

    def written(self, name: str, writer: Writer, overwritten: bool = False) -> Site:
        """What a branch adds: one module's output, or a sum and a multiple of several."""
        if len(writer.modules) == 1 and writer.scale.is_one and writer.bias is None:
            return self.output(name, writer.modules[0], overwritten=overwritten)
        formula = "the sum of the modules' outputs" if len(writer.modules) > 1 else "output"
        where = writer.modules[-1]
        fields = self.fields(name, where, "output", f"{formula} times {writer.scale}")
        return SumSite(
            *fields,
            modules=writer.modules,
            scale=writer.scale,
            layout=layouts.plain(),
            bias=writer.bias,
        )

    def scaled(self, name: str, role: Role) -> Site:
        """A share of a projection's output, multiplied."""
        fields = self.fields(name, role.linear.module, "output", f"{role.layout.pattern} scaled")
        scale = Multiplier(role.scale)
        return SumSite(*fields, modules=(role.linear.module,), scale=scale, layout=role.layout)

    def norm(self, at: str, norm: Norm) -> Iterator[Site]:
        """The three points of a norm."""
        divisor = "sqrt(var(x) + eps)" if norm.kind == "LN" else "sqrt(mean(x^2) + eps)"
        centered = "x - mean(x)" if norm.kind == "LN" else "x"
        scale = self.fields(f"{at}.hook_scale", norm.module, "output", divisor)
        yield NormScaleSite(*scale, norm=norm)
        formula = f"({centered}) / {divisor}"
        normalized = self.fields(f"{at}.hook_normalized", norm.module, "output", formula)
        yield NormalizedSite(*normalized, norm=norm)
        yield self.output(f"{at}.hook_out", norm.module)

    def input(
        self, name: str, module: nn.Module, rank: int = 0, layout: Layout | None = None
    ) -> Site:
        """A module's input through a layout."""
        layout = layout or layouts.plain()
        fields = self.fields(name, module, "input", formula_of(layout))
        return InputSite(*fields, module=module, layout=layout, rank=rank)

    def output(
        self,
        name: str,
        module: nn.Module,
        layout: Layout | None = None,
        shares: frozenset[str] | None = None,
        overwritten: bool = False,
    ) -> OutputSite:
        """A module's output through a layout."""
        layout = layout or layouts.plain()
        fields = self.fields(name, module, "output", formula_of(layout), shares)
        return OutputSite(*fields, module=module, layout=layout, overwritten=overwritten)

    def fields(
        self,
        name: str,
        module: nn.Module,
        side: str,
        formula: str = "as it is",
        shares: frozenset[str] | None = None,
    ) -> tuple[str, str, str, str, frozenset[str]]:
        """What every site is told: name, axes, where, formula, what it shares."""
        where = f"{side} of {self.native.paths.get(module, '') or type(module).__name__}"
        axes = BY_TEMPLATE[template(name)].axes
        return name, axes, where, formula, shares or frozenset({name})


def formula_of(layout: Layout) -> str:
    return "as it is" if layout.pattern == "... m" else layout.pattern

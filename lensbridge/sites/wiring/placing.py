"""Sites of single points: what the wiring of stacks, of layers and of norms has in common."""

from collections.abc import Iterator, Mapping

from torch import nn

from lensbridge.native.multiplier import Multiplier
from lensbridge.native.norm import Norm
from lensbridge.native.parts import ResolvedModel, Role, Writer
from lensbridge.points.names import template
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.sites.derived import NormalizedSite, NormScaleSite, SumSite
from lensbridge.sites.site import InputSite, OutputSite, PointInfo, Site
from lensbridge.tensors import layouts
from lensbridge.tensors.layouts import Layout


class Placing:
    """Makes sites for the points of one model."""

    def __init__(self, native: ResolvedModel) -> None:
        self.native = native

    def written(self, name: str, writer: Writer, overwritten: bool = False) -> Site:
        """What a branch adds: the output of a module, or a sum of several, multiplied."""
        if len(writer.modules) == 1 and writer.scale.is_one and writer.bias is None:
            return self.output(name, writer.modules[0], overwritten=overwritten)
        formula = "the sum of the modules' outputs" if len(writer.modules) > 1 else "output"
        where = writer.modules[-1]
        return SumSite(
            self.info(name, where, "output", f"{formula} times {writer.scale}"),
            modules=writer.modules,
            scale=writer.scale,
            layout=layouts.plain(),
            bias=writer.bias,
        )

    def projected(self, name: str, role: Role, roles: Mapping[str, Role]) -> Site:
        """A share of a projection's output, multiplied where the role says so.

        `roles` are those of all the points, this one included, that may share the projection.
        """
        module = role.linear.module
        if role.scale == 1.0 and role.bias is None:
            same = (point for point, other in roles.items() if other.linear.module is module)
            return self.output(name, module, role.layout, frozenset(same))
        changed = "scaled" if role.bias is None else "with its bias"
        info = self.info(name, module, "output", f"{role.layout.pattern} {changed}")
        return SumSite(info, (module,), Multiplier(role.scale), role.layout, role.bias)

    def norm(self, at: str, norm: Norm, overwritten: bool = False) -> Iterator[Site]:
        """The three points of a norm."""
        divisor = "sqrt(var(x) + eps)" if norm.kind == "LN" else "sqrt(mean(x^2) + eps)"
        centered = "x - mean(x)" if norm.kind == "LN" else "x"
        yield NormScaleSite(self.info(f"{at}.hook_scale", norm.holder, "output", divisor), norm)
        formula = f"({centered}) / {divisor}"
        normalized = self.info(f"{at}.hook_normalized", norm.holder, "output", formula)
        yield NormalizedSite(normalized, norm)
        yield self.output(f"{at}.hook_out", norm.module, overwritten=overwritten)

    def input(
        self, name: str, module: nn.Module, rank: int = 0, layout: Layout | None = None
    ) -> Site:
        """A module's input through a layout."""
        layout = layout or layouts.plain()
        info = self.info(name, module, "input", formula_of(layout))
        return InputSite(info, module, layout, rank)

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
        info = self.info(name, module, "output", formula_of(layout), shares)
        return OutputSite(info, module, layout, overwritten=overwritten)

    def info(
        self,
        name: str,
        module: nn.Module,
        side: str,
        formula: str = "as it is",
        shares: frozenset[str] | None = None,
    ) -> PointInfo:
        """What a point on one side of a module is."""
        where = f"{side} of {self.native.paths.get(module, '') or type(module).__name__}"
        axes = BY_TEMPLATE[template(name)].axes
        return PointInfo(name, axes, where, formula, shares or frozenset({name}))


def formula_of(layout: Layout) -> str:
    return "as it is" if layout.pattern == "... m" else layout.pattern

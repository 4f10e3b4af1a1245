"""Parts -> sites: where each canonical point of one model is, and why some do not exist."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from lensbridge.native.parts import MLPPart, ResolvedModel, StackPart, Writer
from lensbridge.points.names import LAYER, template
from lensbridge.points.point_names import PointNames
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.sites.composed import LogitsSite, PositionSite, RepeatedSite
from lensbridge.sites.grid import grid_site
from lensbridge.sites.kernel.site import KernelSite
from lensbridge.sites.modules import ModuleSites
from lensbridge.sites.sharded import whole_site
from lensbridge.sites.site import OutputSite, Site
from lensbridge.sites.turned import turned_site
from lensbridge.sites.wiring.absence import reason
from lensbridge.sites.wiring.block import BlockWiring
from lensbridge.sites.wiring.index import ExpertGroup, SiteIndex
from lensbridge.sites.wiring.placing import Placing


def sites_of(native: ResolvedModel) -> SiteIndex:
    """Every point of a model, in data-flow order: towers, then the main stack."""
    wiring = _ModelWiring(native)
    found = {site.name: site for site in wiring.sites()}
    if native.sharding is not None:
        found = {name: whole_site(site, native.sharding) for name, site in found.items()}
    order = {row: i for i, row in enumerate(BY_TEMPLATE)}
    first_in_block = order["blocks.{i}.hook_resid_pre"]
    fronts = [native.front_of(tower) for tower in native.towers]

    def key(name: str) -> tuple[int, int, int, int]:
        row = order[template(name)]
        layer = LAYER.match(name)
        part = 1 if layer else 0 if row < first_in_block else 2
        towers = [i for i, front in enumerate(fronts) if name.startswith(front)]
        stack = towers[0] if towers else len(fronts)
        return stack, part, int(layer[2]) if layer else 0, row

    fixed = {name: found[name] for name in sorted(found, key=key)}
    # pieces of tensors on several ranks mean nothing alone
    modules = {} if native.sharding is not None else ModuleSites(native.core)
    return SiteIndex(fixed, wiring.groups, modules=modules)


def vocabulary_of(native: ResolvedModel, sites: SiteIndex) -> PointNames:
    """The names of a model, and why it lacks others."""
    there = sites.rows()
    absent = {row: reason(row, native) for row in BY_TEMPLATE if row not in there}
    gated = any(isinstance(b.mlp, MLPPart) and b.mlp.gate is not None for b in native.blocks)
    depths = {stack.prefix: len(stack.blocks) for stack in native.stacks}
    sees = native.main_input == "pixel_values"
    names = frozenset({"blocks", "vision.blocks"} if sees else {"blocks"})
    return PointNames(sites, absent, depths, gated, names, native=sites.modules)


class _ModelWiring(Placing):
    """The sites of one model, and apart from them the groups of points inside experts."""

    def __init__(self, native: ResolvedModel) -> None:
        super().__init__(native)
        self.groups: dict[str, ExpertGroup] = {}

    def sites(self) -> Iterator[Site]:
        native = self.native
        for tower in native.towers:
            yield from self._turned(tower, self._stack(tower, native.front_of(tower)))
        yield from self._turned(native.main, self._stack(native.main, ""))
        for name, module in (
            ("projector.hook_out", native.projector),
            ("head.hook_hidden", native.head_hidden),
            ("hook_pooler_out", native.pooler),
        ):
            if module is not None:
                site: Site = self.output(name, module)
                rows = name.startswith("projector") and any(t.in_one_row for t in native.towers)
                pooled = name.startswith("head") and native.logits_axes == "b v"
                yield site.with_axes("p m" if rows else "b m") if rows or pooled else site
        if native.unembed is not None:
            yield self._logits(native.unembed.module).with_axes(native.logits_axes)
        elif native.has_unnamed_head:
            yield self._returned_logits("as the model returns them")

    def _logits(self, head: nn.Module) -> OutputSite | LogitsSite:
        native = self.native
        as_it_is = native.logit_scale == 1.0 and native.logit_softcap is None
        if as_it_is and native.unembed_bias is None and not native.main.end_to_end:
            return self.output("hook_logits", head)
        return self._returned_logits("scaled or capped head output")

    def _returned_logits(self, formula: str) -> LogitsSite:
        native = self.native
        entries = tuple(dict.fromkeys((native.root, native.core)))
        info = self.info("hook_logits", native.core, "output", formula)
        return LogitsSite(info, entries, native.head_width)

    def _turned(self, stack: StackPart, sites: Iterator[Site]) -> Iterator[Site]:
        """Sites with the batch first, where the stack's values have positions first.

        Where these are in one row, the sites have no batch.
        """
        for site in sites:
            if stack.in_one_row:
                site = site.with_axes(site.axes.removeprefix("b "))
            if stack.end_to_end and not site.name.endswith(("hook_embed", "hook_pos_embed")):
                site = site.with_axes(site.axes.replace("b p", "b s", 1))
            if stack.is_grid and site.axes.startswith("b p"):
                site = grid_site(site)
            yield turned_site(site) if _has_positions_first(stack, site) else site

    def _stack(self, stack: StackPart, at: str) -> Iterator[Site]:
        if stack.embed is not None:
            writer = Writer((stack.embed,), stack.embed_scale)
            site = self.written(f"{at}hook_embed", writer, stack.embed_overwritten)
            yield _repeated(site, 0) if stack.embed_padding else site
        if stack.pos_embed is not None:
            info = self.info(f"{at}hook_pos_embed", stack.pos_embed, "output")
            rows = PositionSite(info, stack.pos_embed, stack.embed)
            yield rows if stack.embed is not None else rows.with_axes("1 p m")
        norms = {norm.module for norm in (stack.ln_embed, stack.ln_final) if norm is not None}
        twice = len(norms) == 1 and None not in (stack.ln_embed, stack.ln_final)  # nanochat
        if stack.ln_embed is not None:
            overwritten = stack.embed_overwritten or stack.blocks[0].is_entered_inside
            for site in self.norm(f"{at}ln_embed", stack.ln_embed, overwritten):
                yield _repeated(site, 0) if twice else site
        calls = _calls_of_feeders(stack)
        for i, block in enumerate(stack.blocks):
            wiring = BlockWiring(self.native, f"{stack.prefix}.{i}.", block, stack)
            experts = wiring.experts()
            if experts is not None:
                self.groups[f"{experts.at}hook_expert_indices"] = experts
            for site in wiring.sites():
                if site.name.endswith(("hook_resid_pre", "hook_resid_post")):
                    site = site.with_axes(stack.residual_axes)
                elif i in calls and site.name.startswith(f"{stack.prefix}.{i}.attn."):
                    site = _repeated(site, calls[i])
                yield site if block.repeat is None else _repeated(site, block.repeat)
        if stack.ln_final is not None:
            for site in self.norm(f"{at}ln_final", stack.ln_final):
                last = 1 if twice else stack.cycles - 1
                yield _repeated(site, last) if last else site


def _has_positions_first(stack: StackPart, site: Site) -> bool:
    """Whether a native value is `[p, b, ...]`; a kernel's values are not."""
    before = stack.embeds_batch_first and "embed" in site.name
    native = site.axes.startswith(("b p", "b k")) and not isinstance(site, KernelSite)
    return native and stack.positions_first and not before


def _calls_of_feeders(stack: StackPart) -> dict[int, int]:
    """Which call of a mixer's attention each layer makes, where several layers share one."""
    mixers = {i: block.mixer for i, block in enumerate(stack.blocks) if block.mixer is not None}
    feeders = {i: one.feeder.module for i, one in mixers.items() if one.feeder is not None}
    shared = {module for module, count in Counter(feeders.values()).items() if count > 1}
    return {
        i: sum(feeders[j] is module for j in feeders if j < i)
        for i, module in feeders.items()
        if module in shared
    }


def _repeated(site: Site, nth: int) -> Site:
    return RepeatedSite(replace(site.info, where=f"call {nth} of: {site.where}"), site, nth)

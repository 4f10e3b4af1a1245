"""Where points are in vLLM's models: the sites of HuggingFace's, and three of their own."""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from lensbridge.engines.vllm.calls import RequestCall
from lensbridge.engines.vllm.parts import logits_of
from lensbridge.engines.vllm.shards import output_shards
from lensbridge.native.parts import AttentionPart, ResolvedModel
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.derived import change
from lensbridge.sites.dropout import members_of
from lensbridge.sites.heads import HeadInputSite
from lensbridge.sites.kernel.site import KernelSite
from lensbridge.sites.site import InputSite, SharedInputSite, Site
from lensbridge.sites.wiring import sites_of
from lensbridge.sites.wiring.index import SiteIndex
from lensbridge.tensors import layouts
from lensbridge.tensors.layouts import Layout

KERNEL = "vLLM computes attention in one kernel over paged keys and values, which never has it"
NO_HEAD_OF_ITS_OWN = "vLLM computes logits after the model, for the tokens that it samples from"


@dataclass(frozen=True)
class StreamSite(Site):
    """The stream between two branches: one tensor, or two summands that the norm adds up."""

    module: nn.Module

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            here = cast(RequestCall, call)
            new = chain.run(here.input)
            if new is not None:
                here.overwrite_input(new)

        return [Stage(self.module, "input", 0, act)]


@dataclass(frozen=True)
class BranchSite(Site):
    """The stream as a norm reads it for its branch alone.

    An edit changes what the norm gives to the branch. The stream goes on unedited, also where the
    norm is what adds up its two summands.
    """

    module: nn.Module

    def _stages(self) -> list[Stage]:
        def look(call: Call, chain: Chain) -> None:
            here = cast(RequestCall, call)
            new = chain.run(here.input)
            if new is not None:
                here.see(new)
                here.memory[self.name] = self.module.forward(new[0].clone()).unsqueeze(0)

        def follow(call: Call, chain: Chain) -> None:
            if self.name in call.memory:
                call.replace_result(call.memory.pop(self.name))

        return [
            Stage(self.module, "input", 1, look),
            Stage(self.module, "output", -2, follow),
        ]


class PackedHeadInputSite(HeadInputSite):
    """As in HuggingFace's models, through a projection that returns its bias beside its output."""

    def _head(
        self, i: int, copies: Tensor, new: Tensor, native: Tensor, beside: tuple[Any, ...]
    ) -> Tensor:
        how = change(copies[..., i, :], new[..., i, :])
        if how == "none":
            return native[..., i, :]
        stream = new[0, :, i, :].clone()
        normed = stream if self.norm is None else self.norm.forward(stream)
        projected = self.projection.forward(normed * self.in_scale)[0].unsqueeze(0)
        spread = output_shards(self.projection)
        projected = projected if spread is None else spread.whole(projected)
        return self.layout.split(projected)[..., i, :]


@dataclass(frozen=True)
class ArgumentSite(Site):
    """An argument of the attention kernel: the queries or keys after rotary."""

    module: nn.Module
    argument: str
    layout: Layout

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            here = cast(RequestCall, call)
            whole = here.argument(self.argument)
            new = chain.run(self.layout.split(whole))
            if new is not None:
                here.replace_argument(self.argument, self.layout.merge(whole, new))

        return [Stage(self.module, "input", 0, act)]


@dataclass(frozen=True)
class HiddenLogitsSite(Site):
    """The logits at every position, made from what the model returns. They can only be read."""

    module: nn.Module

    editable = False

    def _stages(self) -> list[Stage]:
        make = logits_of(self.module)

        def act(call: Call, chain: Chain) -> None:
            hidden: Tensor = call.result
            logits = make(hidden[0])
            if logits is not None:  # of several workers the first has them
                chain.run(logits.unsqueeze(0))

        return [Stage(self.module, "output", 3, act)]


def packed_sites(native: ResolvedModel) -> SiteIndex:
    """Every point of one of vLLM's models."""
    found = sites_of(native)
    kernels = {block.attn.module: block.attn for block in native.blocks if block.attn is not None}
    fixed = {}
    for name, site in found.fixed.items():
        placed = _placed(site, kernels, native)
        if placed is not None:
            fixed[name] = placed
    return SiteIndex(fixed, {})


def _placed(
    site: Site, kernels: dict[nn.Module, AttentionPart], native: ResolvedModel
) -> Site | None:
    """A site as it is in vLLM; None: there is none."""
    if site.name == "hook_logits":
        return HiddenLogitsSite(site.info, native.core)
    if isinstance(site, SharedInputSite):
        return StreamSite(site.info, site.module)
    if isinstance(site, KernelSite):
        return _argument(site, kernels[site.module])
    if isinstance(site, HeadInputSite):
        return PackedHeadInputSite(**members_of(site))
    if isinstance(site, InputSite) and site.name.endswith(("hook_attn_in", "hook_mlp_in")):
        norms = {norm.module for block in native.blocks for norm in block.norms.values()}
        return BranchSite(site.info, site.module) if site.module in norms else site
    if len(site.axes.split()) < 2 or not site.axes.startswith("b p"):
        return None
    return site


def _argument(site: KernelSite, attn: AttentionPart) -> Site | None:
    kernel: Any = getattr(attn.module, "attn", None)
    places = {"rot_q": ("query", attn.n_heads), "rot_k": ("key", attn.n_kv)}
    if site.role not in places or not isinstance(kernel, nn.Module):
        return None
    argument, n = places[site.role]
    return ArgumentSite(site.info, kernel, argument, layouts.heads(n, attn.d_head))

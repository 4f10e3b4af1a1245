"""PackedModel: one of vLLM's models in its worker, with named points and weights."""

from __future__ import annotations

from torch import nn

from lensbridge.engines.vllm.parts import SOURCE, parts_of
from lensbridge.engines.vllm.sites import packed_sites
from lensbridge.hooked_model import HookedModel
from lensbridge.native.parts import ResolvedModel
from lensbridge.points.point_names import PointNames
from lensbridge.sites.wiring import vocabulary_of
from lensbridge.sites.wiring.index import SiteIndex


class PackedModel(HookedModel):
    """A model of vLLM: names, sites, sizes and weights. vLLM itself runs it.

    Args:
        core: the model.
    """

    def __init__(self, core: nn.Module) -> None:
        super().__init__(core, lambda: None, None, SOURCE)

    def _resolved(self) -> ResolvedModel:
        return parts_of(self.hf_model)

    def _points(self, native: ResolvedModel) -> tuple[SiteIndex, PointNames]:
        sites = packed_sites(native)
        return sites, vocabulary_of(native, sites)

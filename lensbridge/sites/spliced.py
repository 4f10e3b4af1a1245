"""Points that a splice brings: what is spliced in at a point of the model has values of its own.

A splice (a sparse autoencoder) stands at a point, its host, and shows its own values while it is
asked for its host's. Their names are the host's name with a last part:
`blocks.1.hook_resid_pre.hook_sae_acts_post`. They exist while the splice is there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lensbridge.sites.site import Site, Stage


@dataclass(frozen=True)
class SpliceSite(Site):
    """A value inside a splice. It is on no module: the splice shows it to the point's chain."""

    splice: object
    """Whose it is, so that two splices' points are never taken for the same."""

    def _stages(self) -> list[Stage]:
        return []


Splices: TypeAlias = Mapping[str, tuple[SpliceSite, ...]]
"""Host -> the points of the splice that stands there."""

NO_SPLICES: Splices = {}


class SitesWithSplices(Mapping[str, Site]):
    """A model's sites with those of its splices, each splice's behind its host."""

    def __init__(self, native: Mapping[str, Site], splices: Splices) -> None:
        self.native = native
        self.splices = splices
        self._added: dict[str, Site] = {
            site.name: site for sites in splices.values() for site in sites
        }

    def __getitem__(self, name: str) -> Site:
        added = self._added.get(name)
        return self.native[name] if added is None else added

    def __contains__(self, name: object) -> bool:
        return name in self._added or name in self.native

    def __iter__(self) -> Iterator[str]:
        for name in self.native:
            yield name
            yield from (site.name for site in self.splices.get(name, ()))

    def __len__(self) -> int:
        return len(self.native) + len(self._added)

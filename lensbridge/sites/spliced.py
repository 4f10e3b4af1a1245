"""Points of a splice: a sparse autoencoder that is spliced in at a point has values of its own.

The point is the splice's host. The splice runs when its host's value is passed, and shows its own
values then. Their names are the host's name with a last part:
`blocks.1.hook_resid_pre.hook_sae_acts_post`. They exist as long as the splice is there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lensbridge.sites.call import Stage
from lensbridge.sites.site import Site


@dataclass(frozen=True)
class SpliceSite(Site):
    """A value inside a splice. It is on no module: the splice runs the point's chain itself."""

    splice: object
    """The splice, so that points of two splices never count as the same."""

    def _stages(self) -> list[Stage]:
        return []


Splices: TypeAlias = Mapping[str, tuple[SpliceSite, ...]]
"""Host -> the points of the splice there."""

NO_SPLICES: Splices = {}


class SitesWithSplices(Mapping[str, Site]):
    """A model's sites and those of its splices; a splice's come right after its host."""

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

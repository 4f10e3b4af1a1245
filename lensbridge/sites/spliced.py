"""Points that a guest brings: what is spliced in at a point of the model has values of its own.

A guest (a sparse autoencoder) stands at a point, its host, and shows its own values while it is
asked for its host's. Their names are the host's name with a last part:
`blocks.1.hook_resid_pre.hook_sae_acts_post`. They exist while the guest is there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lensbridge.sites.site import Site, Stage


@dataclass(frozen=True)
class GuestSite(Site):
    """A value inside a guest. It is on no module: the guest shows it to the point's chain."""

    guest: object
    """Whose it is, so that two guests' points are never taken for the same."""

    def _stages(self) -> list[Stage]:
        return []


Guests: TypeAlias = Mapping[str, tuple[GuestSite, ...]]
"""Host -> the points of the guest that stands there."""

NO_GUESTS: Guests = {}


class Visited(Mapping[str, Site]):
    """A model's sites with those of its guests, each guest's behind its host."""

    def __init__(self, native: Mapping[str, Site], guests: Guests) -> None:
        self.native = native
        self.guests = guests
        self._brought: dict[str, Site] = {
            site.name: site for sites in guests.values() for site in sites
        }

    def __getitem__(self, name: str) -> Site:
        brought = self._brought.get(name)
        return self.native[name] if brought is None else brought

    def __contains__(self, name: object) -> bool:
        return name in self._brought or name in self.native

    def __iter__(self) -> Iterator[str]:
        for name in self.native:
            yield name
            yield from (site.name for site in self.guests.get(name, ()))

    def __len__(self) -> int:
        return len(self.native) + len(self._brought)

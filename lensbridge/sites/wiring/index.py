"""The sites of a model by name. Those inside experts are made when they are first used.

A mixture of experts has many of them: 80 layers of 128 experts are 50,000 names. Making them all
would slow down every load.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lensbridge.native.experts import Experts
from lensbridge.points.names import template
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.sites.composed import RepeatedSite
from lensbridge.sites.experts import ExpertRole, ExpertSite
from lensbridge.sites.routing import Routing
from lensbridge.sites.site import PointInfo, Site

_ROLES: tuple[ExpertRole, ...] = ("in", "pre", "pre_linear", "post", "out")
_EXPERT = re.compile(r"(.*\.)experts\.(\d+)\.hook_(\w+)$")


@dataclass(frozen=True)
class ExpertGroup:
    """The points inside the experts of one layer.

    Args:
        at: the beginning of their names: `blocks.3.mlp.`.
        where: the native module, as text.
        repeat: which call of the layer this is, where layers share their modules.
    """

    at: str
    experts: Experts
    routing: Routing
    where: str
    repeat: int | None

    @property
    def roles(self) -> tuple[ExpertRole, ...]:
        """The values that each expert has."""
        return tuple(one for one in _ROLES if one != "pre_linear" or self.experts.gated)

    def names(self) -> Iterator[str]:
        """Every name, expert by expert."""
        for e in range(self.experts.n):
            for role in self.roles:
                yield f"{self.at}experts.{e}.hook_{role}"

    def site(self, expert: int, role: str) -> Site | None:
        """The site of one point, or None where there is no such expert or point."""
        if expert >= self.experts.n or role not in self.roles:
            return None
        name = f"{self.at}experts.{expert}.hook_{role}"
        axes, formula = BY_TEMPLATE[template(name)].axes, "from tokens and weights"
        info = PointInfo(name, axes, self.where, formula, frozenset({name}))
        site = ExpertSite(info, self.experts, self.routing, expert, role)
        return site if self.repeat is None else RepeatedSite(info, site, self.repeat)


@dataclass
class SiteIndex(Mapping[str, Site]):
    """Every site by name, in data-flow order.

    Args:
        fixed: all sites outside the experts.
        groups: a point -> the group of points inside experts that follows it.
        modules: the points of the model's own modules, which have no row in the table. They are
            there for who names them, but are not listed.
    """

    fixed: dict[str, Site]
    groups: dict[str, ExpertGroup]
    made: dict[str, Site] = field(default_factory=dict)
    modules: Mapping[str, Site] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_start = {group.at: group for group in self.groups.values()}

    def __getitem__(self, name: str) -> Site:
        site = self.fixed.get(name) or self.made.get(name) or self._make(name)
        site = site or self.modules.get(name)
        if site is None:
            raise KeyError(name)
        return site

    def _make(self, name: str) -> Site | None:
        found = _EXPERT.match(name)
        group = self._by_start.get(found[1]) if found else None
        if found is None or group is None:
            return None
        site = group.site(int(found[2]), found[3])
        if site is not None:
            self.made[name] = site
        return site

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name in self.fixed or name in self.made or self._make(name) is not None

    def __iter__(self) -> Iterator[str]:
        for name in self.fixed:
            yield name
            if name in self.groups:
                yield from self.groups[name].names()

    def __len__(self) -> int:
        inside = (len(group.roles) * group.experts.n for group in self.groups.values())
        return len(self.fixed) + sum(inside)

    def rows(self) -> set[str]:
        """The rows of the table of points that this model has."""
        inside = (group.names() for group in list(self.groups.values())[:1])
        return {template(name) for name in [*self.fixed, *(n for names in inside for n in names)]}

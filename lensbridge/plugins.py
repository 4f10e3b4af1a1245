"""Which architectures are known, and which one describes a model.

Built-in adapters are registered first, then every entry point of the group `lensbridge`. A plugin
that cannot be loaded does not break other models; the reason is in the error if no architecture is
found for a model. A plugin that describes a built-in class has to say which description it replaces
(`overrides`); otherwise the built-in one stays in use.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points

import pluggy

from lensbridge import hookspecs
from lensbridge.errors import PluginError, UnsupportedArchitectureError, suggest
from lensbridge.spec import Architecture

__all__ = ["Claim", "Registry", "register", "registry"]

BUILT_IN = "lensbridge_adapters"


_MOST = 3
"""How many names a message lists."""


@dataclass(frozen=True)
class Claim:
    """One architecture, and the plugin that it comes from.

    `rivals` are other claims on the model's class that are not in use.
    """

    architecture: Architecture
    plugin: str
    rivals: "tuple[Claim, ...]" = ()

    def __str__(self) -> str:
        return f"'{self.architecture.name}' (from {self.plugin})"


@dataclass
class Registry:
    """The architectures of all plugins, and the plugins that failed."""

    claims: list[Claim] = field(default_factory=list)
    broken: dict[str, Exception] = field(default_factory=dict)
    manager: pluggy.PluginManager = field(
        default_factory=lambda: pluggy.PluginManager(hookspecs.PROJECT)
    )

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)

    def register(self, plugin: object, name: str) -> None:
        """Register a plugin object or module.

        Raises:
            PluginError: it has a misspelt hook, returns something that is no architecture, or
                has an architecture whose name is taken.
        """
        try:
            self.manager.register(plugin, name)
            self.manager.check_pending()
            self.claims += self._collect(plugin, name)
        except Exception as error:
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            message = f"The plugin '{name}' cannot be used: {error}"
            raise PluginError(message) from error

    def _collect(self, plugin: object, name: str) -> list[Claim]:
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        caller = self.manager.subset_hook_caller("lensbridge_architectures", others)
        brought: list[object] = [item for answer in caller() for item in answer]
        taken = {claim.architecture.name: claim for claim in self.claims}
        return [Claim(_checked(item, taken), name) for item in brought]

    def discover(self, points: Iterable[EntryPoint]) -> None:
        """Register every entry point; those that fail are kept in `broken`."""
        for point in points:
            try:
                self.register(point.load(), f"{point.name} = {point.value}")
            except Exception as error:
                self.broken[f"{point.name} = {point.value}"] = error

    def select(self, classes: list[str], config: dict[str, object]) -> Claim:
        """The one architecture for a model.

        Args:
            classes: the model's class name and those of its bases, nearest first.
            config: the HuggingFace config as a dictionary.

        Raises:
            UnsupportedArchitectureError: no architecture describes it.
            PluginError: two plugins claim it, and neither overrides the other.
        """
        for name in classes:
            claims = self._of_class(name)
            fitting = [claim for claim in claims if _config_fits(claim.architecture, config)]
            if fitting:
                return _chosen(fitting, name)
            if claims:
                raise UnsupportedArchitectureError(_no_variant(name, claims, config))
        raise UnsupportedArchitectureError(self._unsupported(classes[0], config))

    def _of_class(self, name: str) -> list[Claim]:
        return [claim for claim in self.claims if name in claim.architecture.classes]

    def _unsupported(self, name: str, config: dict[str, object]) -> str:
        known = sorted({cls for claim in self.claims for cls in claim.architecture.classes})
        others = {c for one in self._of_plugins for c in one.architecture.classes}
        kind = config.get("model_type")
        lines = [
            f"No architecture describes {name}{f' (model type {kind!r})' if kind else ''}."
            f"{suggest(name, known)}",
            f"{len(known)} classes are described: docs/coverage.md lists those that lensbridge "
            f"brings{f', and plugins bring {_some(sorted(others))}' if others else ''}.",
            "To add one, write an Architecture (lensbridge.spec; the files of lensbridge_adapters "
            "are 20 to 45 lines each) and pass it as load(..., architecture=MY_ARCHITECTURE).",
        ]
        reasons = {key: str(error).partition("\n")[0] for key, error in self.broken.items()}
        lines += [f"The plugin '{k}' is broken: {why}" for k, why in list(reasons.items())[:_MOST]]
        if len(reasons) > _MOST:
            lines.append(f"{len(reasons) - _MOST} more plugins are broken.")
        return "\n".join(lines)

    @property
    def _of_plugins(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.plugin != BUILT_IN]

    def contested(self) -> Iterator[str]:
        """A line for each description of a plugin that shares classes with another description."""
        for claim in self._of_plugins:
            classes = set(claim.architecture.classes)
            for other in self.claims:
                shared = sorted(classes & set(other.architecture.classes))
                if not shared or other is claim:
                    continue
                if claim.architecture.overrides == other.architecture.name:
                    yield f"{claim} overrides {other} for {_some(shared)}"
                elif other.plugin == BUILT_IN:
                    yield f"{claim} also claims {_some(shared)}; {other} stays in use"
                elif other.architecture.overrides != claim.architecture.name:
                    yield f"{claim} and {other} both claim {_some(shared)}"

    def __str__(self) -> str:
        """The plugins: how many architectures each has, conflicts, and which are broken."""
        counts = Counter(claim.plugin for claim in self.claims)
        lines = [f"{name}: {_counted(count)}" for name, count in counts.items()]
        lines += self.contested()
        lines += [
            f"{key}: broken: {str(error).partition(chr(10))[0]}"
            for key, error in self.broken.items()
        ]
        return "\n".join(lines)


def _counted(count: int) -> str:
    return f"{count} architecture{'' if count == 1 else 's'}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def _checked(item: object, taken: dict[str, Claim]) -> Architecture:
    if not isinstance(item, Architecture):
        raise PluginError(f"lensbridge_architectures returned {item!r}, not an Architecture")
    if item.name in taken:
        raise PluginError(f"the architecture name {taken[item.name]} is taken; choose another")
    return item


def _config_fits(architecture: Architecture, config: dict[str, object]) -> bool:
    return all(config.get(key) == value for key, value in architecture.requires.items())


def _without_overridden(claims: list[Claim]) -> list[Claim]:
    gone = {claim.architecture.overrides for claim in claims}
    return [claim for claim in claims if claim.architecture.name not in gone]


def _chosen(claims: list[Claim], name: str) -> Claim:
    """The claim that is used: a built-in one, or one that says that it replaces it."""
    entitled = _entitled(claims)
    candidates = _without_overridden(entitled)
    if len(candidates) == 1:
        return replace(candidates[0], rivals=tuple(c for c in claims if c not in entitled))
    raise PluginError(
        f"{name} is claimed by {' and by '.join(map(str, candidates or claims))}. Set "
        "overrides='...' in one of them, with the name of the other, or pass "
        "load(..., architecture=...)."
    )


def _entitled(claims: list[Claim]) -> list[Claim]:
    """The built-in claims, those that replace them, and so on; all claims if none is built in."""
    found = [claim for claim in claims if claim.plugin == BUILT_IN]
    if not found:
        return claims
    for _ in claims:
        names = {claim.architecture.name for claim in found}
        found = [c for c in claims if c in found or c.architecture.overrides in names]
    return found


def _no_variant(name: str, claims: list[Claim], config: dict[str, object]) -> str:
    wanted = "; ".join(f"{claim} needs {dict(claim.architecture.requires)}" for claim in claims)
    keys = sorted({key for claim in claims for key in claim.architecture.requires})
    found = {key: config.get(key) for key in keys}
    return f"{name} is known, but not with this config: {wanted}; the config has {found}."


@cache
def registry() -> Registry:
    """The registry of this process: built-in adapters first, then the entry points."""
    import lensbridge_adapters

    found = Registry()
    found.register(lensbridge_adapters, BUILT_IN)
    found.discover(entry_points(group=hookspecs.PROJECT))
    return found


def register(plugin: object, name: str | None = None) -> None:
    """Add a plugin to this process: an object or module with hook implementations.

    Raises:
        PluginError: it has a misspelt hook, or the name of an architecture is taken.
    """
    registry().register(plugin, name or type(plugin).__name__)

"""Which architectures are known, and which one describes a model.

Built-in adapters are registered first, then every entry point of the group `lensbridge`. A plugin
that cannot be loaded is kept aside with its reason: other models go on working, and the reason is
told when a model turns out to need it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points

import pluggy

from lensbridge import hookspecs
from lensbridge.errors import PluginError, UnsupportedArchitectureError, suggest
from lensbridge.spec import Architecture

__all__ = ["Claim", "Registry", "register", "registry"]

BUILT_IN = "lensbridge_adapters"


@dataclass(frozen=True)
class Claim:
    """One architecture and the plugin that brought it."""

    architecture: Architecture
    plugin: str

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
            PluginError: it has a misspelt hook, returns something else than architectures, or
                brings a name that is taken.
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
        """Register every entry point; keep those that fail in `broken`."""
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
            UnsupportedArchitectureError: nothing describes it.
            PluginError: two architectures claim it and neither overrides the other.
        """
        for name in classes:
            claims = [claim for claim in self.claims if name in claim.architecture.classes]
            fitting = [claim for claim in claims if _config_fits(claim.architecture, config)]
            if fitting:
                return _sole(_without_overridden(fitting), name)
            if claims:
                raise UnsupportedArchitectureError(_no_variant(name, claims, config))
        raise UnsupportedArchitectureError(self._unsupported(classes[0], config))

    def _unsupported(self, name: str, config: dict[str, object]) -> str:
        known = sorted({cls for claim in self.claims for cls in claim.architecture.classes})
        lines = [
            f"No architecture describes {name} (model type {config.get('model_type')!r})."
            f"{suggest(name, known)}",
            f"Known classes: {', '.join(known)}.",
            "To add one, write an Architecture (lensbridge.spec; the files of lensbridge_adapters "
            "are 20 to 45 lines each) and pass it as load(..., architecture=MY_ARCHITECTURE).",
        ]
        lines += [f"The plugin '{key}' is broken: {error}" for key, error in self.broken.items()]
        return "\n".join(lines)


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


def _sole(claims: list[Claim], name: str) -> Claim:
    if len(claims) == 1:
        return claims[0]
    raise PluginError(
        f"{name} is claimed by {' and by '.join(map(str, claims))}. One must say "
        "overrides='...' with the name of the other, or pass load(..., architecture=...)."
    )


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
    """Add a plugin to this process by hand: an object or module with hook implementations.

    Raises:
        PluginError: a misspelt hook, or an architecture name that is taken.
    """
    registry().register(plugin, name or type(plugin).__name__)

"""Look-ups of what a description names in the config of a model; errors say what there is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from lensbridge.errors import ArchitectureMismatchError, suggest
from lensbridge.native.resolve.expression import NoValueError, value_of
from lensbridge.native.settings import PlainSettings, as_settings
from lensbridge.spec import Dims, Scale

_Reader = TypeVar("_Reader", bound="ConfigReader")


@dataclass(frozen=True)
class ConfigReader:
    """The config of one model, and the description with which it is read.

    Args:
        core: the model.
        architecture: the name of the description; `plugin` is where it comes from.
        config: the config that has the sizes: the model's own, or one inside it.
    """

    core: nn.Module
    architecture: str
    plugin: str
    config: Any

    def at_config(self: _Reader, name: str | None) -> _Reader:
        """The same for a sub-config."""
        if name is None:
            return self
        return replace(self, config=as_settings(self.field(name)))

    def mismatch(self, what: str) -> ArchitectureMismatchError:
        """The error for a description that does not fit."""
        return ArchitectureMismatchError(
            f"Architecture '{self.architecture}' (from {self.plugin}) does not fit "
            f"{type(self.core).__name__}: {what}"
        )

    def field(self, name: str) -> Any:
        """A config field that must be set."""
        value = self.optional(name)
        if value is None:
            raise self.mismatch(self._no_field(name))
        return value

    def _no_field(self, name: str) -> str:
        if not isinstance(self.config, PlainSettings):
            return f"the config ({type(self.config).__name__}) has no '{name}'."
        held = [key for key, value in self.config.to_dict().items() if isinstance(value, int)]
        return (
            f"neither its config nor the model itself holds '{name}'; they hold "
            f"{', '.join(held[:12]) or 'no numbers'}.{suggest(name, held)} Name a field in "
            "Dims(...), or give the number itself: Dims(layers=12)."
        )

    def optional(self, name: str | None) -> Any:
        """A config field, or None; also None for a field that differs from layer to layer."""
        if name is None:
            return None
        try:
            value = self.config
            for part in name.split("."):
                value = _part_of(value, part)
            return value
        except RuntimeError:  # transformers' error for a field that is not the same everywhere
            return None

    def size(self, said: str | int) -> int:
        """A size: a number, or the config field that holds it.

        Raises:
            ArchitectureMismatchError: there is no such field, or the size is not positive.
        """
        found = said if isinstance(said, int) else int(self.field(said))
        if found < 1:
            raise self.mismatch(f"a size in dims is {found} ({said!r}), and sizes are positive.")
        return found

    def optional_size(self, said: str | int | None) -> int | None:
        """A size that may be unset."""
        value = said if isinstance(said, int) else self.optional(said)
        return None if value is None else int(value)

    def dims_of(self, dims: Dims, index: int) -> Dims:
        """The sizes of one layer: fields with a list of numbers have one for each layer."""
        heads = self._of_layer(dims.heads, index)
        return replace(dims, heads=heads, kv_heads=self._of_layer(dims.kv_heads, index))

    def _of_layer(self, said: Any, index: int) -> Any:
        held = self.optional(said) if isinstance(said, str) else None
        if not isinstance(held, (list, tuple)):
            return said
        if index >= len(held):
            raise self.mismatch(f"'{said}' has {len(held)} numbers, and there is a layer {index}.")
        return held[index]

    def optional_number(self, name: str | None) -> float | None:
        """A config field as a number, or None where it is unset."""
        value = self.optional(name)
        return None if value is None else float(value)

    def scale(self, spec: Scale | None, index: int | None = None) -> float:
        """A multiplier: a number, a config field or an expression over config fields.

        `layer_index` in an expression is the index of the layer, inside one.
        """
        if spec is None:
            return 1.0
        if not isinstance(spec, str):
            return float(spec)
        try:
            return value_of(spec, self.field, index)
        except NoValueError as why:
            raise self.mismatch(f"the scale '{spec}' {why}") from why


def _part_of(settings: Any, part: str) -> Any:
    """What is under a name in a config, under a key in a part of it, or at a place in a list."""
    if isinstance(settings, Sequence) and part.isdigit():
        return dict(enumerate(settings)).get(int(part))
    return settings.get(part) if isinstance(settings, dict) else getattr(settings, part, None)

"""The config of a model: that of a transformers model, or whatever a plain module has for one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lensbridge.errors import LoadError

OWN_KERNEL = "own"
"""What `attn_implementation` is where a model's code has one kernel and no choice."""

_NAMES = ("config", "cfg", "args", "params", "hparams", "hyperparameters", "model_args")
"""What modules call their config, the likeliest first."""


@dataclass(frozen=True)
class Unreadable:
    """A field that raises when it is read.

    Args:
        config: class of the config.
        name: of the field.
        error: what it raised.
    """

    config: str
    name: str
    error: Exception

    def asked(self) -> LoadError:
        """The error for whoever asks for the field."""
        found = LoadError(
            f"The field {self.name!r} of the config ({self.config}) cannot be read: it raised "
            f"{type(self.error).__name__}: {self.error}. Make it readable, or name another field "
            "in the description."
        )
        found.__cause__ = self.error
        return found


class PlainSettings:
    """The sizes and choices of a plain module, read like a transformers config.

    They are the fields of its config and the numbers that the module itself holds.

    Args:
        config: a dataclass, a mapping, a named tuple or any object with attributes; None: nothing.
        module: the module whose own numbers count too.
    """

    sub_configs: ClassVar[dict[str, Any]] = {}  # it holds no other config,
    attribute_map: ClassVar[dict[str, str]] = {}  # and no field has a second name

    def __init__(self, config: Any, module: nn.Module | None = None) -> None:
        own = {} if module is None else vars(module)
        plain = {k: v for k, v in own.items() if _is_plain(v) and not k.startswith("_")}
        plain.pop("training", None)
        self._values = {**plain, **_fields_of(config)}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._values:
            raise AttributeError(name)
        value = self._values[name]
        if isinstance(value, Unreadable):
            raise value.asked()
        return value

    def to_dict(self) -> dict[str, Any]:
        """Every field that can be read, by name."""
        items = self._values.items()
        return {name: value for name, value in items if not isinstance(value, Unreadable)}

    def get_text_config(self, **_: Any) -> "PlainSettings":
        """Itself: what it holds is of one stack."""
        return self


def settings_of(model: nn.Module) -> Any:
    """The config of a model: the transformers config itself, or a `PlainSettings`."""
    config = raw_config(model)
    return config if _is_of_transformers(config) else PlainSettings(config, model)


def as_settings(config: Any) -> Any:
    """A config inside a config, so that both can be read in the same way."""
    return config if _is_of_transformers(config) else PlainSettings(config)


def raw_config(model: nn.Module) -> Any:
    """The object that a model holds as its config; None where it holds none."""
    held = (getattr(model, name, None) for name in _NAMES)
    return next((one for one in held if _is_config(one)), None)


def kernel_of(model: nn.Module) -> str:
    """Which attention implementation a model runs, as transformers names it."""
    return kernel_in(raw_config(model))


def kernel_in(config: Any) -> str:
    """The same in the config of a model, whose kernel may change."""
    return str(getattr(config, "_attn_implementation", None) or OWN_KERNEL)


def _is_of_transformers(config: Any) -> bool:
    return hasattr(config, "to_dict") and hasattr(config, "get_text_config")


def _fields_of(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return {str(name): value for name, value in config.items()}
    if hasattr(config, "_asdict"):
        return dict(config._asdict())
    if is_dataclass(config):
        return {one.name: getattr(config, one.name, None) for one in fields(config)}
    public = [name for name in dir(config) if not name.startswith("_")]
    found = {name: _field(config, name) for name in public}
    return {
        name: value for name, value in found.items() if value is not None and not callable(value)
    }


def _field(config: Any, name: str) -> Any:
    """A field of a config. It may be a property, which may raise anything: not every property of a
    foreign object is of use to lensbridge, so the error is kept until the field is asked for.
    """
    try:
        return getattr(config, name, None)
    except Exception as error:
        return Unreadable(type(config).__name__, name, error)


def _is_config(held: Any) -> bool:
    if held is None or isinstance(held, (nn.Module, torch.Tensor, str, int, float, list)):
        return False
    if isinstance(held, tuple):
        return hasattr(held, "_asdict")
    return isinstance(held, type) or not callable(held)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str))

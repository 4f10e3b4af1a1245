"""Defaults of a model, and a context with other ones."""

from typing import Any

from lensbridge.errors import InputError

USE_DEFAULT_VALUE = None


def override_or_use_default_value(default_flag: Any, override: Any = None) -> Any:
    """The override if there is one, else the default."""
    return default_flag if override is None else override


class LocallyOverridenDefaults:
    """A context in which a model has other defaults.

    Args:
        model: the model.
        overrides: `prepend_bos` and `padding_side`.

    Raises:
        InputError: another name.
    """

    def __init__(self, model: Any, **overrides: Any) -> None:
        unknown = set(overrides) - {"prepend_bos", "padding_side"}
        if unknown:
            raise InputError(
                f"Only prepend_bos and padding_side have defaults, not {sorted(unknown)}."
            )
        self.model = model
        self.overrides = {name: one for name, one in overrides.items() if one is not None}
        self._before: dict[str, Any] = {}

    def __enter__(self) -> None:
        for name, value in self.overrides.items():
            self._before[name] = self._exchange(name, value)

    def __exit__(self, *error: object) -> None:
        for name, value in self._before.items():
            self._exchange(name, value)

    def _exchange(self, name: str, value: Any) -> Any:
        model = self.model
        if name == "prepend_bos":
            before, model.cfg.default_prepend_bos = model.cfg.default_prepend_bos, value
        else:
            before, model.tokenizer.padding_side = model.tokenizer.padding_side, value
        return before

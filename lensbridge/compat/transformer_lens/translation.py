"""lensbridge's own functions for models of this package."""

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from lensbridge.compat.transformer_lens.root import LensRoot


def lens_of(value: Any) -> Any:
    """The `LensModel` of a model of this package; any other value is returned as it is."""
    return value.lens if isinstance(value, LensRoot) else value


def translated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of lensbridge that takes models of this package too."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = {name: lens_of(value) for name, value in kwargs.items()}
        return function(*map(lens_of, args), **given)

    return run


def translated_names(module: ModuleType) -> dict[str, Any]:
    """The public names of a module of lensbridge, with its functions translated."""
    public = {name: vars(module)[name] for name in module.__all__}
    return {
        name: value if isinstance(value, type) or not callable(value) else translated(value)
        for name, value in public.items()
    }

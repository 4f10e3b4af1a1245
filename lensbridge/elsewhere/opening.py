"""How other libraries open a model, and what to write for it here."""

from typing import TYPE_CHECKING, Any

from lensbridge.elsewhere.model import OPENING


class OpeningNames(type):
    """The class of classes of lenses: it answers names that other libraries have on theirs."""

    if not TYPE_CHECKING:

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[0], str):
                raise TypeError(
                    f"{cls.__name__} takes a model object. Open {args[0]!r} with "
                    f"lensbridge.load({args[0]!r})."
                )
            return super().__call__(*args, **kwargs)

        def __getattr__(cls, name: str) -> Any:
            if name in OPENING:
                raise AttributeError(
                    f"The class {cls.__name__} has no {name!r}. Open a model with "
                    "lensbridge.load(name)."
                )
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")

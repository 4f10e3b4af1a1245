"""What a lens on a plain module does not have: all that speaks of layers, heads or a vocabulary.

Everything that its base class has is missing here unless it is named in `HERE`: what is added to
`LensModel` later is refused until somebody makes it work for plain modules.
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lensbridge.errors import NoDescriptionError

T = TypeVar("T")
Message = Callable[[Any, str], str]
"""What an object says about a name that it does not have."""


class Missing:
    """A name that an object does not have. It is an attribute only so that an error can say why."""

    def __init__(self, name: str, message: Message) -> None:
        self.name = name
        self.message = message
        self.__doc__ = f"Not on plain modules: {name} needs a description."

    def __get__(self, owner: Any, kind: type) -> Any:
        return self if owner is None else self._refuse(owner)

    def __set__(self, owner: Any, value: Any) -> None:
        self._refuse(owner)

    def _refuse(self, owner: Any) -> NoReturn:
        raise NoDescriptionError(self.message(owner, self.name))


class Refuses:
    """A mixin of classes that lack names: an error about one of these says why."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            missing = getattr(type(self), name, None)
            if isinstance(missing, Missing):
                raise NoDescriptionError(missing.message(self, name))
            return super().__getattr__(name)


class Without:
    """A decorator of a class: what the class inherits is missing, but for some names.

    Args:
        here: the names that it has, beside those that it defines itself.
        message: what it says about the others.
    """

    def __init__(self, here: Collection[str], message: Message) -> None:
        self.here = here
        self.message = message

    def __call__(self, cls: type[T]) -> type[T]:
        """The class without these names."""
        for name in dir(cls):
            if not name.startswith("_") and name not in self.here and name not in vars(cls):
                setattr(cls, name, Missing(name, self.message))
        return cls

"""Errors that a program written for TransformerLens catches: it checks arguments with `assert`."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from lensbridge.errors import LensbridgeError

P = ParamSpec("P")
R = TypeVar("R")


def assertion(kind: type[LensbridgeError]) -> type[LensbridgeError]:
    """A class of error that is an AssertionError too.

    Example:
        >>> from lensbridge.errors import InputError
        >>> [base.__name__ for base in assertion(InputError).__bases__]
        ['InputError', 'AssertionError']
    """
    names = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, AssertionError), names)


def asserting(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with errors of lensbridge that are AssertionErrors too."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except LensbridgeError as error:
            if isinstance(error, AssertionError):
                raise
            raise assertion(type(error))(*error.args) from error

    return run

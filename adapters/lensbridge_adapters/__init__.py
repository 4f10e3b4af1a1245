"""The architectures that lensbridge ships: one file for each family, found by being here.

They reach lensbridge through the same hook as anybody else's.
"""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from lensbridge.hookspecs import hookimpl
from lensbridge.spec import Architecture


def _families() -> Iterator[Architecture]:
    for module in iter_modules(__path__):
        yield from import_module(f"{__name__}.{module.name}").ARCHITECTURES


@hookimpl
def lensbridge_architectures() -> list[Architecture]:
    """Every built-in architecture."""
    return list(_families())

"""The plugin, which lensbridge asks for the architectures it knows. It imports no torch."""

from lensbridge.hookspecs import hookimpl
from lensbridge.spec import Architecture
from lensbridge_tinystack.adapter import ARCHITECTURES


@hookimpl
def lensbridge_architectures() -> list[Architecture]:
    """The architectures of this package."""
    return list(ARCHITECTURES)

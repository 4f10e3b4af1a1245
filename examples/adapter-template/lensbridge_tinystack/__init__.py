"""The plugin: what lensbridge asks when it looks for architectures. No torch is imported here."""

from lensbridge.hookspecs import hookimpl
from lensbridge.spec import Architecture
from lensbridge_tinystack.adapter import ARCHITECTURES


@hookimpl
def lensbridge_architectures() -> list[Architecture]:
    """The architectures of this package."""
    return list(ARCHITECTURES)

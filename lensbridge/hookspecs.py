"""The hooks that a plugin can implement; it is named in the entry-point group `lensbridge`."""

import pluggy

from lensbridge.spec import Architecture

__all__ = ["hookimpl", "lensbridge_architectures"]

PROJECT = "lensbridge"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Put `@hookimpl` on a function of your plugin that has the name of a hook below."""


@hookspec
def lensbridge_architectures() -> list[Architecture]:  # type: ignore[empty-body]
    """The architectures that this plugin describes.

    An architecture for a class that another one describes must name that one in `overrides`.
    Otherwise a built-in one stays in use, and a conflict of two plugins is an error.
    """

"""What a plugin may implement; its module is named under the entry-point group `lensbridge`."""

import pluggy

from lensbridge.spec import Architecture

__all__ = ["hookimpl", "lensbridge_architectures"]

PROJECT = "lensbridge"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Put `@hookimpl` on a function of your plugin that has one of the names below."""


@hookspec
def lensbridge_architectures() -> list[Architecture]:  # type: ignore[empty-body]
    """Architectures that this plugin describes.

    An architecture whose class another one already claims must name that one in `overrides`;
    otherwise a built-in one stays in use, and two plugins' claims are an error.
    """

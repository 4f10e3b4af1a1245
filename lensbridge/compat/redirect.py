"""Imports of `transformer_lens` that find lensbridge's interface instead."""

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from importlib.util import find_spec
from os import PathLike
from types import ModuleType, TracebackType
from typing import Any

from lensbridge.errors import LensbridgeError

_NAME = "transformer_lens"
_HERE = "lensbridge.compat.transformer_lens"
VERSION = "3.9.0"
"""The version of TransformerLens whose interface this is, for packages that ask."""


class _Loader(Loader):
    """Gives the module of this package under TransformerLens's name."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put this package's module, and all that are loaded with it, under their names.

        A module that is there already is not set as an attribute of its package, where a class of
        the same name may be.
        """
        sys.modules[module.__name__] = import_module(_ours(module.__name__))
        loaded = [name for name in sys.modules if name.startswith(f"{_HERE}.")]
        for name in loaded:
            sys.modules.setdefault(f"{_NAME}{name.removeprefix(_HERE)}", sys.modules[name])


_ANY = DistributionFinder.Context()


class _Distribution(Distribution):
    """What `importlib.metadata` finds under TransformerLens's name."""

    def read_text(self, filename: str) -> str | None:
        """The metadata; None for every other file."""
        about = f"Metadata-Version: 2.1\nName: transformer-lens\nVersion: {VERSION}\n"
        return about if filename == "METADATA" else None

    def locate_file(self, path: str | PathLike[str]) -> Any:
        """Refused: it has no files of its own."""
        raise FileNotFoundError(f"{path}: imports of {_NAME} are redirected to lensbridge.")


class _Finder(DistributionFinder):
    """Finds `transformer_lens` and its modules in this package."""

    def find_distributions(
        self, context: DistributionFinder.Context = _ANY
    ) -> Iterator[Distribution]:
        """TransformerLens under its name, and nothing else."""
        if (context.name or "").replace("-", "_").lower() == _NAME:
            yield _Distribution()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of TransformerLens; None for every other module.

        Raises:
            ModuleNotFoundError: this package has no such module.
        """
        if fullname != _NAME and not fullname.startswith(f"{_NAME}."):
            return None
        found = find_spec(_ours(fullname))
        if found is None:
            raise ModuleNotFoundError(
                f"lensbridge has no {fullname}, and imports of {_NAME} go to it since "
                "lensbridge.compat.install(). What there is and what is not, with reasons: "
                "docs/how-to/from-transformer-lens.md.",
                name=fullname,
            )
        package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, _Loader(), origin=found.origin, is_package=package)


def _ours(fullname: str) -> str:
    return f"{_HERE}{fullname.removeprefix(_NAME)}"


_finder = _Finder()


class Redirection:
    """What `install` returns: a context manager that ends the redirection."""

    def __enter__(self) -> "Redirection":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        uninstall()


def install() -> Redirection:
    """Let `import transformer_lens` find lensbridge's interface, so that other packages use it.

    Call it before the first import of a package that uses TransformerLens; TransformerLens itself
    need not be installed. Calling it again changes nothing.

    Returns:
        A context manager, for code that redirects for a while: at its end `uninstall` is called.

    Raises:
        LensbridgeError: TransformerLens itself was imported before.

    Example:
        >>> import lensbridge.compat
        >>> with lensbridge.compat.install():
        ...     from transformer_lens import HookedTransformer
        >>> HookedTransformer.__module__
        'lensbridge.compat.transformer_lens.transformer'
    """
    if _finder in sys.meta_path:
        return Redirection()
    theirs = sys.modules.get(_NAME)
    if theirs is not None:
        raise LensbridgeError(
            f"{_NAME} was imported before ({getattr(theirs, '__file__', theirs)}), and what "
            "imported it holds on to it. Call lensbridge.compat.install() first, before any "
            "package that imports it."
        )
    sys.meta_path.insert(0, _finder)
    return Redirection()


def uninstall() -> None:
    """Let later imports of `transformer_lens` find TransformerLens itself again.

    Packages that were imported meanwhile keep what they imported.
    """
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
        for name in [name for name in sys.modules if _is_redirected(name)]:
            del sys.modules[name]


def _is_redirected(name: str) -> bool:
    if name != _NAME and not name.startswith(f"{_NAME}."):
        return False
    module: Any = sys.modules[name]
    return str(getattr(module, "__name__", "")).startswith(_HERE)

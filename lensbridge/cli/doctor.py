"""`lensbridge doctor`: checks that a model behaves as its description says."""

import argparse
import sys
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING

from lensbridge.errors import LoadError, suggest
from lensbridge.versions import TESTED, installed

if TYPE_CHECKING:
    from lensbridge.hooked_model import HookedModel
    from lensbridge.spec import Architecture
    from lensbridge.testing import Report


def add_to(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    about = "check by behaviour that a model is what its adapter says"
    parser = subcommands.add_parser("doctor", help=about, description=f"{about.capitalize()}.")
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a hub id, a folder, or 'demo'; without one, versions and plugins are checked alone",
    )
    parser.add_argument(
        "--adapter",
        metavar="NAME",
        help="a registered architecture by name, or package.module:NAME; by default the one that "
        "claims the model",
    )
    parser.add_argument("--dtype", help="load the weights in another dtype")
    parser.add_argument(
        "--all", action="store_true", help="also list the checks that do not apply, and why"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check a model; print a verdict, the versions, the plugins and the table of checks.

    Returns:
        0 if the model conforms, else 1. Without a model, 0 if the versions are tested ones.

    Raises:
        LensbridgeError: the model or the adapter cannot be loaded, or they do not match.
    """
    if arguments.model is None:
        untested = _untested()
        print("\n".join([untested or "The installed versions are tested ones.", *_surroundings()]))
        return 1 if untested else 0
    from lensbridge import load
    from lensbridge.conformance.report import conformance

    architecture = None if arguments.adapter is None else adapter(arguments.adapter)
    model = load(arguments.model, architecture=architecture, dtype=arguments.dtype)
    report = conformance(model.hf_model, architecture=model.architecture)
    print("\n".join([_verdict(model, report), *_surroundings(), "", repr(model), ""]))
    print(_told(report, arguments.all))
    return 0 if report.passed else 1


def _verdict(model: "HookedModel", report: "Report") -> str:
    """One line: whether the model conforms, and whether the versions were tested."""
    kind, name = model.cfg.original_architecture, model.architecture.name
    ran = sum(row.status != "skipped" for row in report.rows)
    verdict = f"{kind} behaves as its description '{name}' says: {ran} checks passed."
    if report.failures:
        failed, first = len(report.failures), report.failures[0].check
        verdict = (
            f"{kind} does not behave as its description '{name}' says: {failed} of {ran} checks "
            f"failed, the first: {first}."
        )
    elif not report.passed:
        verdict = f"{kind} was not checked: no check applies to it."
    return f"{verdict} {_untested()}".rstrip()


def _untested() -> str:
    """A sentence that names installed versions that lensbridge was not tested with, or ""."""
    found = {one: installed(one.package) for one in TESTED}
    outside = [f"{one.package} {has}" for one, has in found.items() if has and not one.holds(has)]
    verb = "was" if len(outside) == 1 else "were"
    return f"{' and '.join(outside)} {verb} not tested with lensbridge." if outside else ""


def _surroundings() -> list[str]:
    """The versions and the plugins."""
    from lensbridge.plugins import registry

    versions = [f"{one.package} {installed(one.package)} ({one})" for one in TESTED]
    return [*versions, *str(registry()).splitlines()]


def adapter(name: str) -> "Architecture":
    """An architecture by its registered name, or by where it is defined: `package.module:NAME`.

    Raises:
        LoadError: there is none.
    """
    from lensbridge.plugins import registry

    module, _, attribute = name.partition(":")
    if attribute:
        sys.path.insert(0, "")  # a module in the current folder
        try:
            found: Architecture = attrgetter(attribute)(import_module(module))
        except (ImportError, AttributeError) as error:
            raise LoadError(f"There is no adapter {name!r}: {error}.") from error
        return found
    known = {claim.architecture.name: claim.architecture for claim in registry().claims}
    if name not in known:
        raise LoadError(f"There is no adapter {name!r}.{suggest(name, known)}")
    return known[name]


def _told(report: "Report", skipped: bool) -> str:
    return f"{report.to_table(skipped)}\n\n{report.verdict}"

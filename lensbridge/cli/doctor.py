"""`lensbridge doctor`: does a model behave as the description that it is read with says?"""

import argparse
import sys
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING

from lensbridge.errors import LoadError, suggest

if TYPE_CHECKING:
    from lensbridge.spec import Architecture
    from lensbridge.testing import Report


def add_to(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    about = "check by behaviour that a model is what its adapter says"
    parser = subcommands.add_parser("doctor", help=about, description=f"{about.capitalize()}.")
    parser.add_argument("model", metavar="MODEL", help="a hub id, a folder, or 'demo'")
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
    """Check a model, print the table and a verdict.

    Returns:
        0 if the model conforms, else 1.

    Raises:
        LensbridgeError: the model or the adapter cannot be had, or they do not fit.
    """
    from lensbridge import load
    from lensbridge.conformance.report import conformance

    architecture = None if arguments.adapter is None else adapter(arguments.adapter)
    model = load(arguments.model, architecture=architecture, dtype=arguments.dtype)
    print(f"{model}\n")
    report = conformance(model.hf_model, architecture=model.architecture)
    print(_told(report, arguments.all))
    return 0 if report.passed else 1


def adapter(name: str) -> "Architecture":
    """An architecture by its registered name, or by where it stands: `package.module:NAME`.

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

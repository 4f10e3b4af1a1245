"""`lensbridge doctor`: checks that a model behaves as its description says."""

import sys
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli import completion
from lensbridge.cli.opening import opened
from lensbridge.cli.options import AsJson, Loading
from lensbridge.cli.output import printable, show_json
from lensbridge.cli.working import working
from lensbridge.errors import LoadError, suggest
from lensbridge.versions import TESTED, installed

if TYPE_CHECKING:
    from lensbridge.hooked_model import HookedModel
    from lensbridge.spec import Architecture
    from lensbridge.testing import Report


EXAMPLES = (
    "lensbridge doctor",
    "lensbridge doctor demo",
    "lensbridge doctor gpt2 --adapter my_adapters:MINE --all",
)


def run(
    loading: Loading,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A hub id, a folder, a GGUF file, or 'demo'; without one, versions and plugins "
            "are checked.",
            autocompletion=completion.models,
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A registered architecture by name, or package.module:NAME; by default the one "
            "that claims the model.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also list the checks that do not apply, and why.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Check by behaviour that a model is what its description says; the verdict comes first.

    Returns:
        0 if the model conforms, else 1. Without a model, 0 if the versions are tested ones.

    Raises:
        LensbridgeError: the model or the adapter cannot be loaded, or they do not match.
    """
    if model is None:
        return _without_model(as_json)
    from lensbridge.conformance.kit import conformance

    architecture = None if adapter is None else named_adapter(adapter)
    lens = opened(model, loading, architecture=architecture)
    with working(f"checking {model}"):
        report = conformance(lens.hf_model, architecture=lens.architecture)
        advice = list(report.advice)
    if as_json:
        show_json({**_as_json(lens, report), "advice": advice})
    else:
        head = [_verdict(lens, report), *advice, *_surroundings(), "", repr(lens), ""]
        print(printable("\n".join([*head, _told(report, every)])))
    return 0 if report.passed else 1


def _without_model(as_json: bool) -> int:
    untested = _untested()
    verdict = untested or "The installed versions are tested ones."
    if as_json:
        show_json({"passed": not untested, "verdict": verdict, **_versions_and_plugins()})
    else:
        print(printable("\n".join([verdict, *_surroundings()])))
    return 1 if untested else 0


def _as_json(lens: "HookedModel", report: "Report") -> dict[str, Any]:
    rows = [
        {"check": row.check, "status": row.status, "model": row.model, "detail": row.detail}
        | ({"about": row.about} if row.about else {})
        for row in report.rows
    ]
    return {
        "passed": report.passed,
        "verdict": _verdict(lens, report),
        "class": lens.cfg.original_architecture,
        "architecture": lens.architecture.name,
        **_versions_and_plugins(),
        "checks": rows,
    }


def _versions_and_plugins() -> dict[str, Any]:
    from lensbridge.plugins import registry

    versions = {one.package: installed(one.package) for one in TESTED}
    return {"versions": versions, "plugins": str(registry()).splitlines()}


def _verdict(model: "HookedModel", report: "Report") -> str:
    """One line: whether the model conforms, and whether the versions were tested."""
    from lensbridge.conformance.held_blocks import unheld

    kind, name = model.cfg.original_architecture, model.architecture.name
    left = unheld(report.rows)
    ran = sum(row.status != "skipped" for row in report.rows)
    verdict = f"{kind} behaves as its description '{name}' says: {ran} checks passed."
    verdict += f" Not held: {', '.join(left)}." if left else ""
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


def named_adapter(name: str) -> "Architecture":
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

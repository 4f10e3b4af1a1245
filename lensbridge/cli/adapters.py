"""`lensbridge adapters`: the descriptions that are known, and who brings them."""

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli.options import AsJson
from lensbridge.cli.output import note, printable, show, show_json
from lensbridge.cli.working import working
from lensbridge.errors import InputError, LoadError, suggest

if TYPE_CHECKING:
    from lensbridge.conformance.check import Row
    from lensbridge.plugins import Claim, Registry

EXAMPLES = (
    "lensbridge adapters",
    "lensbridge adapters LlamaForCausalLM",
    "lensbridge adapters gpt2 --json",
    "lensbridge adapters my_adapters --check --report conformance.json",
)

Asked = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]", help="A description, a model class or a plugin, or the start of one."
    ),
]
Check = Annotated[
    bool, typer.Option("--check", help="Run the conformance kit on tiny models of each.")
]
Record = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="With --check, also write the result as JSON."),
]


def run(
    name: Asked = None, check: Check = False, report: Record = None, as_json: AsJson = False
) -> int:
    """List the descriptions of architectures: name, plugin, the model classes that each claims.

    Plugins that are broken, and claims on the same class, are listed below. `doctor` checks a
    description on a model.

    Returns:
        1 if a description that was checked does not conform, else 0.

    Raises:
        LensbridgeError: no description has such a name, class or plugin.
        OSError: the report cannot be written.
    """
    from lensbridge.plugins import registry

    found = registry()
    claims = found.claims if name is None else _matching(found, name)
    if check:
        return _checked(claims, report, as_json)
    if report is not None:
        raise InputError("--report is the file for what --check finds: add --check.")
    if as_json:
        show_json(_as_json(found, claims))
        return 0
    show(_table(claims), f"{len(claims)} of {len(found.claims)} descriptions")
    for line in found.contested():
        note(line)
    for plugin, error in found.broken.items():
        note(f"{plugin} is broken: {error}")
    return 0


def _checked(claims: Sequence["Claim"], file: Path | None, as_json: bool) -> int:
    from lensbridge.conformance.record import prepare, record, write
    from lensbridge.testing import conformance

    if file is not None:
        prepare(file)

    rows: list[Row] = []
    for plugin in dict.fromkeys(claim.plugin for claim in claims):
        _import_models(plugin)
    for claim in claims:
        with working(f"checking {claim.architecture.name}"):
            found = conformance(claim.architecture)
        rows += found.rows
        if not as_json:
            print(printable(f"{claim}: {found.verdict}"))
            print(printable(found.to_table(skipped=False)) if found.failures else "", end="")
    told = record(rows)
    if file is not None:
        write(file, told)
    if as_json:
        show_json(told)
    return 0 if told["passed"] else 1


def _import_models(plugin: str) -> None:
    """Import the modules of a plugin's package: they may have classes that transformers has not."""
    module = plugin.rpartition("=")[2].partition(":")[0].strip()
    with suppress(ImportError):
        package = import_module(module)
        for one in walk_packages(vars(package).get("__path__", ()), f"{module}."):
            with suppress(ImportError):
                import_module(one.name)


def _matching(found: "Registry", name: str) -> list["Claim"]:
    start = name.lower()
    claims = [
        one for one in found.claims if any(word.lower().startswith(start) for word in _words(one))
    ]
    if not claims:
        known = [word for one in found.claims for word in _words(one)]
        raise LoadError(
            f"No description or plugin is called {name!r}, and none claims such a class."
            f"{suggest(name, known)} "
            "'lensbridge new-adapter MODEL' writes one for a model."
        )
    return claims


def _words(claim: "Claim") -> list[str]:
    return [claim.architecture.name, *claim.architecture.classes, claim.plugin]


def _as_json(found: "Registry", claims: Sequence["Claim"]) -> dict[str, Any]:
    return {
        "adapters": [
            {
                "name": one.architecture.name,
                "plugin": one.plugin,
                "classes": one.architecture.classes,
                "requires": dict(one.architecture.requires),
                "overrides": one.architecture.overrides,
            }
            for one in claims
        ],
        "contested": list(found.contested()),
        "broken": {plugin: str(error) for plugin, error in found.broken.items()},
    }


def _table(claims: Sequence["Claim"]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for label in ("description", "plugin", "only if the config has", "classes"):
        table.add_column(label)
    for one in claims:
        needs = ", ".join(f"{key}={value!r}" for key, value in one.architecture.requires.items())
        told = (one.architecture.name, one.plugin, needs, ", ".join(one.architecture.classes))
        table.add_row(*map(Text, told))
    return table

"""`lensbridge adapters`: the descriptions that are known, and who brings them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli.options import AsJson
from lensbridge.cli.output import note, show, show_json
from lensbridge.errors import LoadError, suggest

if TYPE_CHECKING:
    from lensbridge.plugins import Claim, Registry

EXAMPLES = (
    "lensbridge adapters",
    "lensbridge adapters LlamaForCausalLM",
    "lensbridge adapters gpt2 --json",
)

Asked = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="A description or a model class, or the start of one."),
]


def run(name: Asked = None, as_json: AsJson = False) -> int:
    """List the descriptions of architectures: name, plugin, the model classes that each claims.

    Plugins that are broken, and claims on the same class, are listed below. `doctor` checks a
    description on a model.

    Raises:
        LensbridgeError: no description has such a name or class.
    """
    from lensbridge.plugins import registry

    found = registry()
    claims = found.claims if name is None else _matching(found, name)
    if as_json:
        show_json(_as_json(found, claims))
        return 0
    show(_table(claims), f"{len(claims)} of {len(found.claims)} descriptions")
    for line in found.contested():
        note(line)
    for plugin, error in found.broken.items():
        note(f"{plugin} is broken: {error}")
    return 0


def _matching(found: "Registry", name: str) -> list["Claim"]:
    start = name.lower()
    claims = [
        one for one in found.claims if any(word.lower().startswith(start) for word in _words(one))
    ]
    if not claims:
        known = [word for one in found.claims for word in _words(one)]
        raise LoadError(
            f"No description is called {name!r} or claims such a class.{suggest(name, known)} "
            "'lensbridge new-adapter MODEL' writes one for a model."
        )
    return claims


def _words(claim: "Claim") -> list[str]:
    return [claim.architecture.name, *claim.architecture.classes]


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

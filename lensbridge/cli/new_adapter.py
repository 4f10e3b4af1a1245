"""`lensbridge new-adapter`: a starter adapter file for a model, and a test next to it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from lensbridge.derive.derivation import Derivation

_TEST = '''"""{name} passes the conformance checks."""

{imports}from lensbridge.testing import conformance


def test_{stem}_conforms() -> None:
    {body}
'''


def add_to(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    about = "derive a starter adapter file from what a model does, and write a test next to it"
    parser = subcommands.add_parser("new-adapter", help=about, description=f"{about.capitalize()}.")
    parser.add_argument("model", metavar="MODEL", help="a hub id or a folder")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the folder to write into (default: this one)",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the repository"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Derive, write both files, print what was established and what was not.

    Raises:
        LensbridgeError: the model cannot be loaded.
        OSError: the folder cannot be written to, or a file exists already.
    """
    folder: Path = arguments.output
    if not folder.is_dir():  # before the work, not after it
        raise FileNotFoundError(f"There is no folder {folder.resolve()}; create it first.")
    model = _load(arguments.model, arguments.trust_remote_code)
    derivation, refusal = _derive(model)
    print(_told(model, derivation, refusal))
    if derivation.architecture is None:
        return 1
    stem = _stem(derivation.architecture.name)
    adapter, test = folder / f"{stem}.py", folder / f"test_{stem}.py"
    for path, text in (
        (adapter, derivation.render()),
        (test, _test(stem, arguments.model, model, derivation)),
    ):
        if path.exists():
            raise FileExistsError(f"{path} is there already; pass another --output.")
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    print(f"Run it with: pytest {test}")
    return 0 if refusal is None else 1


def _load(source: str, trust_remote_code: bool) -> "nn.Module":
    from lensbridge.loading import _from_pretrained, _source

    return _from_pretrained(_source(source, ""), {"trust_remote_code": trust_remote_code or None})


def _derive(model: "nn.Module") -> "tuple[Derivation, str | None]":
    """The description that conforms; or what was derived, and the reason why it does not."""
    from lensbridge.derive import derive
    from lensbridge.derive.check import accepted
    from lensbridge.errors import UnsupportedArchitectureError

    derivation = derive(model)
    try:
        return accepted(model, derivation), None
    except UnsupportedArchitectureError as error:
        return derivation, str(error).partition("\n")[0]


def _told(model: "nn.Module", derivation: "Derivation", refusal: str | None) -> str:
    lines = [f"{type(model).__name__}:"]
    lines += [f"  established      {what}" for what in derivation.established]
    lines += [f"  not established  {part}: {why}" for part, why in derivation.missing.items()]
    lines.append(f"  {refusal or 'what is written conforms to the model'}")
    return "\n".join(lines)


def _stem(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).lower()


def _test(stem: str, source: str, model: "nn.Module", derivation: "Derivation") -> str:
    import transformers

    assert derivation.architecture is not None
    constant = stem.upper()
    imports = f"from {stem} import {constant}\n\n"
    body = f"conformance({constant}).require()"
    if not hasattr(transformers, type(model).__name__):  # none can be built by its name alone
        imports += "from transformers import AutoModelForCausalLM\n"
        body = (
            f'model = AutoModelForCausalLM.from_pretrained("{source}", trust_remote_code=True)\n'
            f"    conformance(model, architecture={constant}).require()"
        )
    return _TEST.format(name=derivation.architecture.name, stem=stem, imports=imports, body=body)

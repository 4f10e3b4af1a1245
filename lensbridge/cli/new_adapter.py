"""`lensbridge new-adapter`: a starter adapter file for a model, and a test next to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lensbridge.cli.options import AsJson, Model
from lensbridge.cli.output import show_json
from lensbridge.cli.working import working

if TYPE_CHECKING:
    from torch import nn

    from lensbridge.derive.derivation import Derivation

_TEST = '''"""{name} passes the conformance checks."""

{imports}from lensbridge.testing import conformance


def test_{stem}_conforms() -> None:
    {body}
'''


EXAMPLES = (
    "lensbridge new-adapter ./my-model",
    "lensbridge new-adapter someone/new-model --output adapters --trust-remote-code",
)


def run(
    model: Model,
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="The folder to write into; made if there is none.",
            show_default="this one",
        ),
    ] = Path(),
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code from the repository.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Derive a description (an adapter file) from what a model does; write it and a test of it.

    It tells what was established about the model and what was not. The verdict is that of
    `lensbridge doctor` on the model and of the test that is written.

    Returns:
        0 if the description conforms, else 1.

    Raises:
        LensbridgeError: the model cannot be loaded.
        OSError: the folder cannot be made or written to, or a file exists already.
    """
    output.mkdir(parents=True, exist_ok=True)  # before the work, so that an error comes at once
    with working(f"deriving a description of {model}"):
        module = _load(model, trust_remote_code)
        derivation, refusal = _derive(module)
    if not as_json:
        print(_told(module, derivation, refusal))
    files = _write(output, model, module, derivation)
    if as_json:
        show_json(_as_json(module, derivation, refusal, files))
    elif files:
        print("\n".join([*(f"wrote {path}" for path in files), f"Run it with: pytest {files[1]}"]))
    return 0 if files and refusal is None else 1


def _write(
    folder: Path, source: str, model: "nn.Module", derivation: "Derivation"
) -> tuple[Path, ...]:
    """Write the adapter and its test; nothing if no description was derived."""
    if derivation.architecture is None:
        return ()
    stem = _stem(derivation.architecture.name)
    texts = {
        folder / f"{stem}.py": derivation.render(),
        folder / f"test_{stem}.py": _test(stem, source, model, derivation),
    }
    for path in texts:
        if path.exists():
            raise FileExistsError(f"{path} is there already; pass another --output.")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return tuple(texts)


def _as_json(
    model: "nn.Module", derivation: "Derivation", refusal: str | None, files: Sequence[Path]
) -> dict[str, Any]:
    return {
        "class": type(model).__name__,
        "conforms": bool(files) and refusal is None,
        "established": derivation.established,
        "missing": derivation.missing,
        "refusal": refusal,
        "files": files,
    }


def _load(source: str, trust_remote_code: bool) -> "nn.Module":
    from lensbridge.loading.checkpoint import from_pretrained
    from lensbridge.loading.source import source_of

    return from_pretrained(source_of(source, {}), {"trust_remote_code": trust_remote_code or None})


def _derive(model: "nn.Module") -> "tuple[Derivation, str | None]":
    """The description that conforms; or what was derived, and the reason why it does not."""
    from lensbridge.derive import derive
    from lensbridge.derive.check import accepted
    from lensbridge.errors import UnsupportedArchitectureError

    derivation = derive(model)
    try:
        derivation = accepted(model, derivation)
    except UnsupportedArchitectureError as error:
        return derivation, str(error).partition("\n")[0]
    return derivation, _first_failure(model, derivation)


def _first_failure(model: "nn.Module", derivation: "Derivation") -> str | None:
    """What the kit finds on the model, or on the tiny models of the test; None if both pass."""
    from lensbridge.testing import conformance

    architecture = derivation.architecture
    assert architecture is not None
    report = conformance(model, architecture=architecture)
    if report.passed and _is_built_by_name(model, derivation):
        report = conformance(architecture)
    if report.passed:
        return None
    row = report.failures[0]
    return f"what is written does not pass the check '{row.check}': {row.detail}"


def _is_built_by_name(model: "nn.Module", derivation: "Derivation") -> bool:
    """Whether the kit can make tiny models of the class, so that the test needs no weights."""
    import transformers

    from lensbridge.errors import LoadError
    from lensbridge.testing import tiny_model

    assert derivation.architecture is not None
    if not hasattr(transformers, type(model).__name__):
        return False
    try:
        tiny_model(derivation.architecture)
    except LoadError:
        return False
    return True


def _told(model: "nn.Module", derivation: "Derivation", refusal: str | None) -> str:
    lines = [f"{type(model).__name__}:"]
    lines += [f"  established      {what}" for what in derivation.established]
    lines += [f"  not established  {part}: {why}" for part, why in derivation.missing.items()]
    lines.append(f"  {refusal or 'what is written conforms to the model'}")
    return "\n".join(lines)


def _stem(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).lower()


def _test(stem: str, source: str, model: "nn.Module", derivation: "Derivation") -> str:
    assert derivation.architecture is not None
    constant = stem.upper()
    imports = f"from {stem} import {constant}\n\n"
    body = f"conformance({constant}).require()"
    if not _is_built_by_name(model, derivation):
        call, needed = _opening(source, model, constant)
        imports += needed
        body = f"model = {call}\n    conformance(model, architecture={constant}).require()"
    return _TEST.format(name=derivation.architecture.name, stem=stem, imports=imports, body=body)


def _opening(source: str, model: "nn.Module", constant: str) -> tuple[str, str]:
    """A call that loads the model, and the import that it needs."""
    import transformers

    name = type(model).__name__
    if hasattr(transformers, name):
        return f'{name}.from_pretrained("{source}")', f"from transformers import {name}\n"
    options = f"architecture={constant}, trust_remote_code=True"
    return f'lensbridge.load("{source}", {options}).hf_model', "import lensbridge\n"

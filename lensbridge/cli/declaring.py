"""How a function becomes a command: its options, its help and its examples."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_SECTIONS = ("\n\nReturns:", "\n\nRaises:")


def declare(
    app: typer.Typer, name: str, function: Callable[..., int], examples: Sequence[str]
) -> None:
    """Make a function a command.

    Args:
        app: what the command is added to.
        name: of the command.
        function: its parameters are the command's. A parameter whose type is a dataclass stands
            for all fields of that class, each an option. The docstring is the help.
        examples: command lines, shown after the help.
    """
    shown = "\n\n".join(["Examples:", *(f"  $ {one}" for one in examples)])
    app.command(name, help=_help(function), epilog=shown)(_expanded(function))


def _help(function: Callable[..., int]) -> str:
    text = inspect.getdoc(function) or ""
    for section in _SECTIONS:
        text = text.partition(section)[0]
    return "\n\n".join(part.replace("\n", " ") for part in text.split("\n\n"))


def _expanded(function: Callable[..., int]) -> Callable[..., int]:
    """The function with the fields of its dataclasses as parameters of their own, and --debug."""
    hints = get_type_hints(function, include_extras=True)
    given = inspect.signature(function).parameters.values()
    groups = {one.name: hints[one.name] for one in given if is_dataclass(hints[one.name])}
    alone = [one.replace(annotation=hints[one.name]) for one in given if one.name not in groups]
    joined = [one for group in groups.values() for one in _parameters(group)]
    debug = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug
    )
    parameters = [*alone, *joined, debug]

    @wraps(function)
    def run(**options: Any) -> int:
        options.pop("debug")
        for name, group in groups.items():
            options[name] = group(**{one.name: options.pop(one.name) for one in fields(group)})
        return function(**options)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    )
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is MISSING else one.default,
            annotation=hints[one.name],
        )
        for one in fields(group)
    ]

"""The `lensbridge` command. Each subcommand is a function `run` in a module of this package.

These modules import large libraries inside their functions, so that `lensbridge --version` answers
at once. Results go to standard output; progress and errors go to standard error.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from lensbridge import LensbridgeError, __version__
from lensbridge.cli import (
    adapters,
    attn,
    demo,
    doctor,
    experiment,
    harvest,
    lens,
    new_adapter,
    patch,
    plan,
    points,
    serve,
    steer,
)
from lensbridge.cli.declaring import declare
from lensbridge.errors import UnknownPointError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; an error that is explained on stderr; wrong arguments; Ctrl-C."""

COMMANDS = {
    "demo": demo,
    "points": points,
    "attn": attn,
    "lens": lens,
    "patch": patch,
    "steer": steer,
    "run": experiment,
    "plan": plan,
    "harvest": harvest,
    "serve": serve,
    "doctor": doctor,
    "adapters": adapters,
    "new-adapter": new_adapter,
}

_EPILOG = (
    "Exit status: 0 done, 1 an error that is explained on standard error (or a check that failed), "
    "2 wrong arguments, 130 interrupted.\n\n"
    "Examples:\n\n  $ lensbridge demo\n\n"
    '  $ lensbridge lens demo "The Eiffel Tower is in the city of"\n\n'
    "  $ lensbridge patch --help"
)

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="lensbridge",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lensbridge {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True, epilog=_EPILOG)
def _lensbridge(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Mechanistic interpretability on unmodified HuggingFace models."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE)


for _name, _module in COMMANDS.items():
    declare(app, _name, _module.run, _module.EXAMPLES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit status: 0; 1 for an error that is explained on stderr; 2 for wrong arguments; 130
        after an interrupt (Ctrl-C).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return get_command(app)(arguments, prog_name="lensbridge", standalone_mode=False) or OK
    except _UsageError as error:
        return _refused(error)
    except (typer.Abort, KeyboardInterrupt):
        _tell("interrupted.")
        return INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            raise
        _tell(_explained(error))
        return FAILED


def _refused(error: Exception) -> int:
    """Tell which argument is wrong, and where the right ones are listed."""
    context = getattr(error, "ctx", None)
    path = "lensbridge" if context is None else context.command_path
    message = error.format_message().rstrip()  # type: ignore[attr-defined]
    _tell(f"{message} '{path} --help' lists the arguments.")
    return USAGE


def _explained(error: Exception) -> str:
    if isinstance(error, UnknownPointError):
        return f"{error} 'lensbridge points MODEL' lists the points with their layers."
    if isinstance(error, LensbridgeError | OSError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({error}). 'lensbridge plan MODEL' says what a run needs."
    return (
        f"unexpected {type(error).__name__}: {error}. Run it again with --debug for the traceback, "
        "and please report it."
    )


def _tell(message: str) -> None:
    from lensbridge.cli.output import printable

    print(f"lensbridge: {printable(message)}", file=sys.stderr)

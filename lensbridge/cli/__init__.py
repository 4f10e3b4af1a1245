"""The `lensbridge` command. Each subcommand is a module of this package.

Such a module has `add_to(subcommands)`, which declares its arguments. It imports large libraries
inside its functions, so that `lensbridge --version` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence

from lensbridge import LensbridgeError, __version__
from lensbridge.cli import demo, doctor, new_adapter

COMMANDS = (demo, doctor, new_adapter)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit status: 0, or 1 for an error that is explained on stderr.

    Raises:
        SystemExit: after `--help` and `--version`, and with status 2 for arguments that are wrong.
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (LensbridgeError, OSError) as error:
        print(f"lensbridge: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lensbridge", description="Mechanistic interpretability on unmodified HuggingFace models."
    )
    parser.add_argument("--version", action="version", version=f"lensbridge {__version__}")
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(subcommands)
    return parser

"""Pictures of results as files: where they may go is checked before the work."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lensbridge.cli.options import Output
from lensbridge.cli.output import note
from lensbridge.errors import InputError

if TYPE_CHECKING:
    from lensbridge.viz import Picture

_PAGES = (".html",)
_IMAGES = (".png", ".svg", ".pdf")


def check_files(output: Output) -> None:
    """Refuse files that could not be written.

    Raises:
        InputError: a file of another kind.
        FileNotFoundError: there is no such folder.
    """
    for option, path, suffixes in _asked(output):
        if path.suffix.lower() not in suffixes:
            raise InputError(
                f"{option} writes {' or '.join(suffixes)}; {str(path)!r} ends in "
                f"{path.suffix or 'nothing'!r}."
            )
        check_folder(path)


def check_folder(path: Path) -> None:
    """Refuse a file in a folder that there is not.

    Raises:
        FileNotFoundError: with the folder.
    """
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; create it first.")


def wants_files(output: Output) -> bool:
    """Whether any picture is to be written."""
    return any(True for _ in _asked(output))


def save_files(picture: "Picture", output: Output) -> None:
    """Write a picture to the files that were asked for, and tell where they are."""
    for _, path, _ in _asked(output):
        note(f"wrote {picture.save(path)}")


def _asked(output: Output) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    if output.html is not None:
        yield "--html", output.html, _PAGES
    if output.png is not None:
        yield "--png", output.png, _IMAGES

"""The colours of pictures, on light and on dark pages.

A picture in a page takes its colours from CSS variables, so that it follows the page. Where there
is no page (a file for a paper) the colours of one theme are written into it.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

ThemeName: TypeAlias = Literal["auto", "light", "dark"]
"""The colours of a picture; "auto" takes those of the page around it."""

PLUS, MINUS = "#2464b4", "#b93d0a"
"""Blue and vermilion, told apart by all common kinds of colour blindness. As dark as needed for
white numbers on them, and the same in both themes: a smaller value is more transparent."""

SERIES = ("#2464b4", "#b93d0a", "#0e8a6d", "#a2559a", "#8a6d00", "#5b6770")
"""Lines of one chart, in this order."""


@dataclass(frozen=True)
class Theme:
    """Colours as matplotlib and CSS take them.

    Args:
        paper: the background.
        ink: text.
        muted: names of axes and other secondary text.
        rule: grid lines and outlines.
        cell_ink: numbers on a pale cell.
    """

    paper: str
    ink: str
    muted: str
    rule: str
    cell_ink: str


LIGHT = Theme("#ffffff", "#1c2126", "#56606a", "#d5dade", "#000000")
DARK = Theme("#15181b", "#e8ebee", "#a6b0b9", "#3d444b", "#ffffff")
AUTO = Theme("#010203", "#010204", "#010205", "#010206", "#010207")
"""Placeholders. `lensbridge.viz.canvas` writes CSS variables in their place."""

THEMES: dict[ThemeName, Theme] = {"auto": AUTO, "light": LIGHT, "dark": DARK}

NAMES = ("paper", "ink", "muted", "rule", "cell_ink")

_DARK_PAGES = (
    'body[data-jp-theme-light="false"]',  # JupyterLab, nbconvert
    "body.vscode-dark",
    'html[theme="dark"]',  # Colab
    '[data-md-color-scheme="slate"]',  # the documentation
)
_LIGHT_PAGES = (
    'body[data-jp-theme-light="true"]',
    "body.vscode-light",
    'html[theme="light"]',
    '[data-md-color-scheme="default"]',
)


def variable(name: str) -> str:
    """The CSS variable of a colour.

    Example:
        >>> variable("cell_ink")
        '--lb-cell-ink'
    """
    return f"--lb-{name.replace('_', '-')}"


def css(root: str = ".lb") -> str:
    """The variables as style rules: the system's theme, unless a notebook or page has its own."""
    light, dark = _declared(LIGHT), _declared(DARK)
    return "\n".join(
        (
            f"{root}{{{light}--lb-plus:{PLUS};--lb-minus:{MINUS}}}",
            f"@media (prefers-color-scheme:dark){{{root}{{{dark}}}}}",
            f"{','.join(f'{page} {root}' for page in _LIGHT_PAGES)}{{{light}}}",
            f"{','.join(f'{page} {root}' for page in _DARK_PAGES)}{{{dark}}}",
        )
    )


def _declared(theme: Theme) -> str:
    return "".join(f"{variable(name)}:{getattr(theme, name)};" for name in NAMES)

"""Pictures as a reader sees them: the marks and texts of an SVG, the pixels of a PNG."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import numpy as np

SVG = "{http://www.w3.org/2000/svg}"
PLUS, MINUS = "#2464b4", "#b93d0a"


@dataclass(frozen=True)
class Mark:
    """A shape with a tip: a cell, a bar, a dot."""

    tip: str
    fill: str
    opacity: float
    corners: list[tuple[float, float]]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def middle(self) -> tuple[float, float]:
        """The centre."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def parsed(svg: str) -> ElementTree.Element:
    """The root of an SVG element."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def marks(svg: str) -> list[Mark]:
    """The shapes that have a tip, in the order in which they are drawn."""
    return list(_marks(parsed(svg)))


def _marks(root: ElementTree.Element) -> Iterator[Mark]:
    for group in root.iter(f"{SVG}g"):
        tip, path = group.find(f"{SVG}title"), group.find(f"{SVG}path")
        if tip is not None and path is not None:
            style = styles(path)
            numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", path.attrib["d"])]
            corners = list(zip(numbers[::2], numbers[1::2], strict=True))
            opacity = float(style.get("opacity", "1"))
            yield Mark(tip.text or "", style["fill"], opacity, corners)


def styles(node: ElementTree.Element) -> dict[str, str]:
    """The style attribute as a mapping."""
    pairs = (part.split(":", 1) for part in node.attrib.get("style", "").split(";") if ":" in part)
    return {key.strip(): value.strip() for key, value in pairs}


def texts(svg: str) -> list[str]:
    """All texts that are drawn."""
    return ["".join(node.itertext()) for node in parsed(svg).iter(f"{SVG}text")]


def ids(svg: str) -> list[str]:
    """Every id."""
    return re.findall(r'\bid="([^"]*)"', svg)


def pixels(png: bytes) -> Any:
    """The pixels of a PNG, [row, column, channel] from 0 to 1."""
    from matplotlib.image import imread

    return np.asarray(imread(BytesIO(png), format="png"))


def blend(colour: str, opacity: float, paper: str) -> tuple[float, ...]:
    """A colour over another."""
    pairs = zip(channels(colour), channels(paper), strict=True)
    return tuple(opacity * over + (1 - opacity) * under for over, under in pairs)


def channels(colour: str) -> tuple[float, ...]:
    """Red, green and blue of "#rrggbb", from 0 to 1."""
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The contrast of two colours, 1 to 21.

    Source: WCAG 2.1, "contrast ratio" and "relative luminance".
    """
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

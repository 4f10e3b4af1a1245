"""Several pictures as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lensbridge.viz.canvas import Canvas
from lensbridge.viz.heading import Heading
from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.picture import Picture, framed

GAP = 14.0


@dataclass(frozen=True, repr=False)
class Panels(Picture):
    """Pictures side by side; in a page as many in a row as there is room for.

    Args:
        title: what they show together.
        pictures: the pictures.
        columns: how many in a row in a file.

    Raises:
        ValueError: there is no picture.
    """

    title: str
    pictures: Sequence[Picture]
    columns: int = 2

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError(f"{self.title!r} has no picture.")

    @cached_property
    def _rows(self) -> list[Sequence[Picture]]:
        starts = range(0, len(self.pictures), self.columns)
        return [self.pictures[i : i + self.columns] for i in starts]

    @cached_property
    def _heading(self) -> Heading:
        return Heading(self.title, max(sum(p.size[0] + GAP for p in row) for row in self._rows))

    @property
    def _top(self) -> float:
        return self._heading.height + 2 if self.title else 0.0

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in pixels."""
        widths = [sum(p.size[0] + GAP for p in row) for row in self._rows]
        heights = [max(p.size[1] for p in row) + GAP for row in self._rows]
        return max(*widths, self._heading.width), self._top + sum(heights)

    def draw(self, canvas: Canvas) -> None:
        """Draw them onto a canvas of its size."""
        self._heading.draw(canvas)
        y = self._top
        for row in self._rows:
            x = 0.0
            for picture in row:
                picture.draw(canvas.part(x, y, *picture.size))
                x += picture.size[0] + GAP
            y += max(picture.size[1] for picture in row) + GAP

    def fragment(self) -> Html:
        """The pictures as a piece of HTML that can stand in any page."""
        title = [element("strong", plain(self.title))] if self.title else []
        return framed(*title, element("div", *map(_part, self.pictures), class_="lb-panels"))


def _part(picture: Picture) -> Html:
    """A picture as one of several, with style rules only if it has its own."""
    if type(picture).fragment is Picture.fragment:
        return element("div", picture.svg())
    return element("div", picture.fragment(), class_="lb-whole-row")

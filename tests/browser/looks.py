"""What a reader sees of pictures in a page, measured by the browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chromium import COLOURS, Tab

CONTRAST = """() => {@COLOURS@
  const drawn = (element) => element instanceof SVGGraphicsElement && element.tagName !== "svg";
  const paint = (element) => {
    const style = getComputedStyle(element);
    if (!drawn(element)) return parse(style.backgroundColor);
    const [r, g, b, a] = parse(style.fill);
    return [r, g, b, a * Number(style.fillOpacity) * Number(style.opacity)];
  };
  const behind = (element, box) => {
    const all = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const at = all.indexOf(element);
    const under = (at < 0 ? all : all.slice(drawn(element) ? at + 1 : at));
    const solid = under.filter((one) => !["text", "tspan", "g"].includes(one.tagName));
    return solid.reverse().reduce((below, one) => over(paint(one), below), [255, 255, 255]);
  };
  const found = [];
  for (const root of document.querySelectorAll(".lb")) {
    const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const element = walk.currentNode.parentElement;
      const hidden = !element.checkVisibility() || element.closest("style,script,title");
      if (hidden || !walk.currentNode.data.trim()) continue;
      const range = document.createRange();
      range.selectNodeContents(walk.currentNode);
      const box = range.getClientRects()[0];
      if (!box || !box.width) continue;
      const middle = [box.x + box.width / 2, box.y + box.height / 2];
      if (!document.elementsFromPoint(...middle).some((one) => root.contains(one))) continue;
      const below = behind(element, box);
      const style = getComputedStyle(element);
      const contrast = contrastOf(parse(drawn(element) ? style.fill : style.color), below);
      found.push({ text: walk.currentNode.data.slice(0, 30), contrast });
    }
  }
  return found;
}""".replace("@COLOURS@", COLOURS)
"""The contrast of every text of every picture with what is painted behind it; not of text that is
scrolled out of sight."""

BOXES = """() => [...document.querySelectorAll(".lb")].map((root) => {
  const outer = root.getBoundingClientRect();
  const inner = [...root.querySelectorAll("svg, .lb-text, .lb-tree, .lb-at-text, img")]
    .map((one) => one.getBoundingClientRect());
  const room = root.parentElement.getBoundingClientRect();
  return {
    width: outer.width,
    height: outer.height,
    least: Math.min(...inner.map((one) => Math.min(one.width, one.height))),
    beyond: outer.right - room.right,
  };
})"""
"""The size of each picture, and of the smallest part in it."""


class Watched(Tab):
    """A page with pictures."""

    @property
    def elsewhere(self) -> list[str]:
        """Requests that left this machine."""
        own = ("http://127.0.0.1", "ws://127.0.0.1", "file:", "data:", "blob:", "about:")
        return [one for one in self.requests if not one.startswith(own)]

    def contrasts(self) -> dict[str, float]:
        """Text -> the least contrast that it has anywhere."""
        found: dict[str, float] = {}
        for one in self.page.evaluate(CONTRAST):
            found[one["text"]] = min(one["contrast"], found.get(one["text"], 99.0))
        return found

    def boxes(self) -> list[dict[str, float]]:
        """The sizes of all pictures."""
        found: list[dict[str, float]] = self.page.evaluate(BOXES)
        return found


@contextmanager
def watched(browser: Any, width: int = 1280, height: int = 9000, **more: Any) -> Iterator[Watched]:
    """A page of its own; at the end, nothing may have gone wrong in it."""
    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    page = Watched(context.new_page())
    try:
        yield page
        assert page.errors == []
        assert page.elsewhere == []
    finally:
        context.close()

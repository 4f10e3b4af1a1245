"""A page in a browser, and someone who uses it. Errors of the page fail the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chromium import COLOURS, Tab
from serve.site import TOKEN, Site

CONTRAST = """() => {@COLOURS@
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      layers.push(parse(getComputedStyle(one).backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest(".unseen, .skip, noscript, option")) continue;
    const below = behind(element);
    const contrast = contrastOf(parse(getComputedStyle(element).color), below);
    found.push({ text: walk.currentNode.data.slice(0, 30), contrast });
  }
  return found;
}""".replace("@COLOURS@", COLOURS)
"""The contrast of every text of the page with what is behind it."""


class Opened(Tab):
    """A page in one tab of a browser."""

    def is_harmless(self, said: str) -> bool:
        """Whether the console only tells that a question was refused, as tests provoke it."""
        return "the server responded with a status of 4" in said

    def type(self, text: str) -> None:
        """Type a prompt."""
        self.page.fill("#prompt", text)

    def fill(self, label: str, text: str) -> None:
        """Fill a control of the view, and leave it."""
        control = self.page.locator("#panel").get_by_label(label, exact=True)
        control.fill(text)
        control.press("Tab")

    def open(self, tab: str) -> None:
        """Open a view and wait for its figure."""
        self.page.click(f"#tab-{tab}")
        self.see(f"#tab-{tab}[aria-selected=true]")
        if tab != "comparison":
            self.see("#panel .view:not(.busy) .figure:not(:empty)")

    def click(self, selector: str) -> None:
        self.page.locator(selector).first.click()

    def see(self, selector: str) -> None:
        """Wait until something is there to be seen."""
        self.page.locator(selector).first.wait_for(state="visible")

    def keys(self, locator: Any, *keys: str) -> None:
        locator.focus()
        for key in keys:
            self.page.keyboard.press(key)

    def texts(self, selector: str) -> list[str]:
        return [one.strip() for one in self.page.locator(selector).all_text_contents()]

    def text(self, selector: str) -> str:
        found: str = self.page.text_content(selector)
        return found

    def code(self) -> str:
        """The Python that the view shows."""
        return self.text(".python code")


@contextmanager
def opened(
    browser: Any, site: Site, width: int = 1280, script: str = "", **options: Any
) -> Iterator[Opened]:
    """Open the page; at the end, nothing may have gone wrong in it."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    context.add_init_script(script)
    page = Opened(context.new_page())
    try:
        page.page.goto(f"{site.url}/?token={TOKEN}")
        page.see(".chip")
        page.see(".figure:not(:empty)")
        yield page
        assert page.errors == []
    finally:
        context.close()

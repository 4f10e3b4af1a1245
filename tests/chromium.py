"""A real browser, its tabs, and how colours of a page are measured in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

COLOURS = """
  const parse = (text) => {
    if (text === "none") return [0, 0, 0, 0];
    const numbers = (text.match(/-?[\\d.]+(e-?\\d+)?/g) ?? [0, 0, 0, 0]).map(Number);
    const scale = text.startsWith("color(srgb") ? 255 : 1;
    const [r, g, b] = numbers.slice(0, 3).map((one) => one * scale);
    return [r, g, b, numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (rgb) => {
    const linear = (one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrastOf = (ink, below) => {
    const [a, b] = [light(over(ink, below)), light(below)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
"""
"""Functions of JavaScript: a colour of CSS as numbers, one painted over another, and the contrast
of two as WCAG defines it."""


@contextmanager
def launched() -> Iterator[Any]:
    """The browser of this machine; the test is skipped where playwright is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"]
        found = playwright.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()


class Tab:
    """A page of which everything that goes wrong, and every request, is kept."""

    patience = 60_000
    """Milliseconds to wait for something."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(self.patience)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not self.is_harmless(message.text):
            self.errors.append(message.text)

    def is_harmless(self, said: str) -> bool:
        """Whether a complaint in the console is no fault of the page."""
        return False

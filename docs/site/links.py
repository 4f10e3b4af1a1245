"""Links of a built site: each leads to a page that is there and to an anchor on it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {
    "img": "src",
    "script": "src",
    "iframe": "src",
    "source": "src",
    "link": "href",
}
"""What a browser fetches by itself. None of it may come from the network."""


@dataclass
class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what it fetches."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag says."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if (name := FETCHED.get(tag)) in given and given.get("rel") != "canonical":
            self.fetched.append(given[str(name)])


@cache
def read(path: Path) -> Page:
    """A page of the site."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken(site: Path) -> list[str]:
    """A line for each link that leads nowhere and each file that comes from the network."""
    return [
        f"{path.relative_to(site)}: {fault}"
        for path in sorted(site.rglob("*.html"))
        for fault in _faults(path)
        if path.name != "404.html"  # its links are those of the site's root
    ]


def _faults(path: Path) -> Iterator[str]:
    page = read(path)
    for link in dict.fromkeys(page.links):
        if not _resolves(path, link):
            yield f"no such page or anchor: {link}"
    for file in dict.fromkeys(page.fetched):
        if urlsplit(file).netloc:
            yield f"fetched from the network: {file}"
        elif not _resolves(path, file):
            yield f"no such file: {file}"


def _resolves(path: Path, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True  # another site, an address, data
    target = (path.parent / unquote(parts.path)) if parts.path else path
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return False
    return not parts.fragment or unquote(parts.fragment) in read(target.resolve()).anchors

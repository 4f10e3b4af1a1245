"""Dotted names as a tree that folds; layers that are alike are shown once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.picture import framed

Nested: TypeAlias = "dict[str, Nested | str]"
"""The names below a name, and under "" what is said of itself."""

MOST_KINDS = 6
"""Kinds of numbered branches that are shown in full."""

STYLE = (
    ".lb-tree{max-width:900px;overflow-wrap:anywhere}"
    ".lb-tree summary{cursor:pointer;padding:1px 0}"
    ".lb .lb-tree ul{list-style:none;margin:0 0 0 7px;padding:0 0 0 12px;"
    "border-left:1px solid var(--lb-rule)}"
    ".lb .lb-tree>ul{margin:0;padding:0;border:0}"
    ".lb .lb-tree li{margin:0;padding:1px 0}"
    ".lb .lb-tree code{font:12px/1.5 ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',"
    "monospace;color:var(--lb-ink)!important;background:none!important;padding:0!important;border:0}"
    ".lb .lb-tree i{font-style:normal;color:var(--lb-muted);font-size:12px;margin-left:8px}"
    ".lb-facts{margin:4px 0 8px;color:var(--lb-muted)}"
    ".lb-facts span{display:inline-block}"
    ".lb-facts b{color:var(--lb-ink);font-weight:400;margin-right:14px}"
)


@dataclass(frozen=True)
class Tree:
    """Names with dots as a tree of branches that fold, without a script.

    Branches with numbers for names, such as layers, are shown once if what is below them is alike.

    Args:
        title: written above it.
        facts: a few words, by name.
        details: what is said of each name: "blocks.0.hook_resid_pre" -> "batch, pos, d_model 64".
        opened: names of branches that are unfolded at first.
        notes: lines below the facts.
    """

    title: str
    facts: Mapping[str, str]
    details: Mapping[str, str]
    opened: Sequence[str] = ()
    notes: Sequence[str] = ()

    def fragment(self) -> Html:
        """The tree as a piece of HTML that can stand in any page."""
        facts = [
            Html(element("span", Html(f"{plain(name)} {element('b', plain(fact))}")) + " ")
            for name, fact in self.facts.items()
        ]
        return framed(
            element("strong", plain(self.title)),
            element("div", *facts, class_="lb-facts"),
            *(element("div", plain(note), class_="lb-facts") for note in self.notes),
            element("div", self._list(nested(self.details), ""), class_="lb-tree"),
            style=STYLE,
        )

    def _repr_html_(self) -> str:
        return self.fragment()

    def _list(self, branch: Nested, path: str) -> Html:
        below = {name: inner for name, inner in branch.items() if isinstance(inner, dict)}
        entries: list[Html] = []
        for numbered, names in groupby(below, key=str.isdigit):
            if numbered:
                entries += self._numbered({name: below[name] for name in names}, path)
            else:
                entries += [self._entry(name, below[name], f"{path}{name}") for name in names]
        return element("ul", *entries)

    def _entry(self, name: str, branch: Nested, path: str, alike: str = "") -> Html:
        said = branch.get("", "")
        label = Html(element("code", plain(name)) + _said(alike, "lb-alike") + _said(str(said)))
        if set(branch) <= {""}:
            return element("li", label)
        opened = {"open": "open"} if path in self.opened else {}
        inner = element("summary", label), self._list(branch, f"{path}.")
        return element("li", element("details", *inner, **opened))

    def _numbered(self, below: Mapping[str, Nested], path: str) -> list[Html]:
        kinds: list[tuple[Nested, list[int]]] = []
        for name, content in below.items():
            same = next((numbers for one, numbers in kinds if one == content), None)
            if same is None:
                kinds.append((content, [int(name)]))
            else:
                same.append(int(name))
        entries = []
        for content, numbers in kinds[:MOST_KINDS]:
            alike = f"{len(numbers)} alike" if len(numbers) > 1 else ""
            entries.append(self._entry(ranges(numbers), content, f"{path}{numbers[0]}", alike))
        others = [number for _, numbers in kinds[MOST_KINDS:] for number in numbers]
        if others:
            entries.append(element("li", _said(f"{ranges(sorted(others))}: others, not shown")))
        return entries


def _said(words: str, kind: str = "lb-said") -> Html:
    return element("i", plain(words), class_=kind) if words else Html("")


def nested(details: Mapping[str, str]) -> Nested:
    """Dotted names as branches.

    Example:
        >>> nested({"a": "1", "b.0": "2"})
        {'a': {'': '1'}, 'b': {'0': {'': '2'}}}
    """
    root: Nested = {}
    for name, said in details.items():
        branch = root
        for step in name.split("."):
            below = branch.setdefault(step, {})
            assert isinstance(below, dict)
            branch = below
        branch[""] = said
    return root


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text.

    Example:
        >>> ranges([0, 1, 2, 5, 7, 8])
        '0 to 2, 5, 7, 8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts)

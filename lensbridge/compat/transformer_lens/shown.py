"""The hook points of a model in which something stands in the place of parts or points.

TransformerLens finds names by walking through the modules in `setup()`, so a point inside a wrapper
is called by its path in the wrapper: `blocks.0.mlp.old_mlp.hook_pre`. Until `setup()` is called it
keeps the name that it had before.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import nn

from lensbridge.compat.transformer_lens.lens_point import LensPoint
from lensbridge.compat.transformer_lens.point import HookPoint, NamesFilter
from lensbridge.compat.transformer_lens.replacing import Replacements
from lensbridge.compat.transformer_lens.selection import Selection
from lensbridge.compat.transformer_lens.spellings import spelled
from lensbridge.errors import HookError, UnknownPointError


class Model(Protocol):
    """The model that is walked through."""

    points: Any
    replacements: Replacements
    known_names: Mapping[HookPoint, str] | None


class Shown:
    """The points of a model as they are found by walking through it now.

    Attributes:
        points: name -> point, in data-flow order.
        names: the model's own points -> the names under which they are found.
    """

    def __init__(self, root: Model) -> None:
        self.points: dict[str, HookPoint] = {}
        self.names: dict[str, str] = {}
        for point in root.points.made.values():
            point.name = point.own_name
        paths = {one: path for path, one in walk(root, "", set()) if isinstance(one, HookPoint)}
        kept = _kept_names(paths, root.known_names)
        for point, path in paths.items():
            point.name = kept.get(point, path)
            self.points[point.name] = point
        self.names = {
            point.own_name: name
            for name, point in self.points.items()
            if isinstance(point, LensPoint) and point.is_hooked_by_lens
        }

    def select(self, asked: NamesFilter, selection: Selection) -> list[str]:
        """The names that a filter matches, in data-flow order.

        Args:
            asked: None for all, a name, a filter on names, or a list of these.
            selection: what selects among the native points.

        Raises:
            HookError: a point that is not in the tree while something else stands there.
            UnknownPointError: an unknown name, or a filter that matches nothing.
        """
        if asked is None or callable(asked):
            chosen = self._matching(asked, selection)
        else:
            items = [asked] if isinstance(asked, str) else list(asked)
            chosen = {name for item in items for name in self._named(item, selection)}
        return [name for name in self.points if name in chosen]

    def _matching(self, asked: Any, selection: Selection) -> set[str]:
        foreign = [name for name in self.points if not self.is_own(name)]
        matched = {name for name in foreign if asked is None or asked(name)}

        def accepts(name: str) -> bool:
            return bool(asked(self.names.get(name, name)))

        try:
            own = selection.names(None if asked is None else accepts)
        except UnknownPointError:
            if not matched:
                raise
            own = []
        spelled_own = (spelled(name) for name in own)
        return matched | {self.names[name] for name in spelled_own if name in self.names}

    def _named(self, item: Any, selection: Selection) -> set[str]:
        if callable(item):
            return self._matching(item, selection)
        if item in self.points:
            return {item}
        own = [spelled(name) for name in selection.names(item)]
        found = {self.names[name] for name in own if name in self.names}
        if not found:
            raise HookError(
                f"There is no {own[0]} while something else stands in its place. hook_dict lists "
                "the points that there are."
            )
        return found

    def is_own(self, name: str) -> bool:
        """Whether the native model has the point of this name, in its place."""
        point = self.points[name]
        return isinstance(point, LensPoint) and point.is_hooked_by_lens


def _kept_names(
    paths: Mapping[HookPoint, str], known: Mapping[HookPoint, str] | None
) -> dict[HookPoint, str]:
    """The names that points have had since the last `setup()`.

    Args:
        paths: the path of each point now.
        known: names then; None if nothing was replaced since. A point that has none is the model's
            own, or new.
    """
    if known is None:
        return {}
    names: dict[HookPoint, str] = {
        point: point.own_name for point in paths if isinstance(point, LensPoint)
    }
    names.update(known)
    kept = {point: name for point, name in names.items() if point in paths}
    new = {path for point, path in paths.items() if point not in kept}
    return {point: name for point, name in kept.items() if name not in new}


def walk(root: Model, path: str, memo: set[Any]) -> Iterator[tuple[str, nn.Module]]:
    """The modules below a path, in data-flow order: points, and what stands in places.

    Args:
        root: the model.
        path: of a part, or "" for the whole model.
        memo: the modules that were found before.

    Yields:
        The path of each below `path`, and the module.
    """
    below = f"{path}." if path else ""
    places = root.replacements
    hidden = {one: held for one, held in places.hidden.items() if one.startswith(below)}
    hosts = {**hidden, **{one: held for one, held in places.added.items() if one.startswith(below)}}
    for name in root.points:
        if not name.startswith(below):
            continue
        for host in [one for one in hosts if _comes_by(one, name, hidden)]:
            yield from _inside(hosts.pop(host), host, below, memo)
        if not any(_covers(host, name) for host in hidden):
            yield from _inside(root.points[name], name, below, memo)
    for host, held in hosts.items():
        if not any(_covers(other, host) and other != host for other in hidden):
            yield from _inside(held, host, below, memo)


def _covers(host: str, name: str) -> bool:
    return name == host or name.startswith(f"{host}.")


def _comes_by(host: str, name: str, hidden: dict[str, nn.Module]) -> bool:
    """Whether what is at a path comes before this name, and is not inside something else."""
    if any(_covers(other, host) and other != host for other in hidden):
        return False
    return _covers(host, name) or (host not in hidden and _covers(host.rpartition(".")[0], name))


def _inside(
    module: nn.Module, path: str, below: str, memo: set[Any]
) -> Iterator[tuple[str, nn.Module]]:
    yield from module.named_modules(memo, path.removeprefix(below))

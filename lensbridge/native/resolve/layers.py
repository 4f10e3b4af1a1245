"""The layers of a stack: one module each, or one module of each of several lists."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lensbridge.native.parts import Members
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.wrappers import unwrapped

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
"""What a list of layers may be."""


@dataclass(frozen=True)
class Layer:
    """One layer, where it is, and its modules where it is none itself."""

    module: nn.Module
    path: str
    members: Members | None = None


def layers_of(finder: Finder, blocks: str | tuple[str, ...]) -> list[Layer]:
    """The layers of a list, or of several lists that have a part of each layer.

    Raises:
        ArchitectureMismatchError: there is no such list, or the lists do not go together.
    """
    if isinstance(blocks, str):
        path = finder.unprefixed(blocks)
        return [Layer(one, f"{path}.{i}") for i, one in enumerate(_listed(finder, blocks))]
    lists = _Lists(finder, {one: _listed(finder, one) for one in blocks})
    return [lists.layer(i) for i in range(lists.count)]


def _listed(finder: Finder, path: str) -> list[nn.Module]:
    blocks = finder.top(path)
    found = [unwrapped(one) for one in blocks.children()] if isinstance(blocks, LISTS) else []
    if not found:
        raise finder.mismatch(
            f"'{path}' ({type(blocks).__name__}) is not a list of layers: an nn.ModuleList, "
            "nn.Sequential or nn.ModuleDict."
        )
    return found


@dataclass(frozen=True)
class _Lists:
    """Lists that have one module for each layer, under one parent."""

    finder: Finder
    listed: Mapping[str, list[nn.Module]]
    count: int = field(init=False)
    runner: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        counts = {path: len(modules) for path, modules in self.listed.items()}
        parents = {self.finder.unprefixed(path).rpartition(".")[0] for path in counts}
        if len(set(counts.values())) != 1 or len(parents) != 1:
            raise self.finder.mismatch(
                "the lists in blocks must be of one module, and have one module for each layer; "
                + (", ".join(f"'{path}' has {n}" for path, n in counts.items()) or "none is named")
                + "."
            )
        object.__setattr__(self, "count", next(iter(counts.values())))
        runner = self.finder.parts.get(next(iter(parents)), self.finder.core)
        object.__setattr__(self, "runner", runner)

    def layer(self, i: int) -> Layer:
        """The modules of one layer, under the names of their lists."""
        named = {path.rpartition(".")[2]: modules[i] for path, modules in self.listed.items()}
        paths = [f"{self.finder.unprefixed(path)}.{i}" for path in self.listed]
        members = Members(dict(zip(paths, named.values(), strict=True)), self.runner)
        return Layer(nn.ModuleDict(named), paths[0], members)

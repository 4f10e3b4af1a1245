"""Which modules a model is made of, to see when some were replaced."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Structure:
    """The modules of a model as they were when they were looked at.

    Args:
        names: of the modules that have others inside.
        parents: these modules.
        children: what each of them had inside.
        inside: their dictionaries of modules, each with what was in it.
        tables: modules that transformers resizes in place: embeddings and heads.
        sizes: the shapes of their weights.
    """

    names: tuple[str, ...]
    parents: tuple[nn.Module, ...]
    children: tuple[list[nn.Module | None], ...]
    inside: tuple[tuple[dict[str, nn.Module | None], list[nn.Module | None]], ...]
    tables: tuple[nn.Module, ...] = ()
    sizes: tuple[torch.Size | None, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, tables: Iterable[nn.Module] = ()) -> "Structure":
        """Of a model as it is now, with its embeddings and heads."""
        watched = tuple(tables)
        found = [(name, module) for name, module in model.named_modules() if module._modules]
        children = tuple(list(module._modules.values()) for _, module in found)
        return cls(
            tuple(name for name, _ in found),
            tuple(module for _, module in found),
            children,
            tuple(zip((module._modules for _, module in found), children, strict=True)),
            watched,
            _sizes(watched),
        )

    @property
    def holds(self) -> bool:
        """Whether every module still has the same modules inside."""
        for modules, children in self.inside:  # looked at before each run
            if [*modules.values()] != children:
                return False
        return _sizes(self.tables) == self.sizes

    def changes(self) -> list[str]:
        """What was replaced, added or taken out, in words."""
        found = []
        for name, module, before in zip(self.names, self.parents, self.children, strict=True):
            now = list(module._modules.values())
            if len(now) != len(before):
                found.append(
                    f"{name or 'the model'} has {len(now)} modules inside, not {len(before)}"
                )
                continue
            for key, one, other in zip(module._modules, before, now, strict=True):
                if one is not other:
                    path = f"{name}.{key}".lstrip(".")
                    found.append(f"{path} was {type(one).__name__} and is {type(other).__name__}")
        if _sizes(self.tables) != self.sizes:
            found.append("embeddings or head were resized")
        return found


def _sizes(modules: Iterable[nn.Module]) -> tuple[torch.Size | None, ...]:
    weights = (module._parameters.get("weight") for module in modules)
    return tuple(None if weight is None else weight.shape for weight in weights)

"""Which modules a model is made of, to see when some were replaced."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class Structure:
    """The modules of a model as they were when they were looked at.

    Args:
        names: of the modules that have others inside.
        parents: these modules.
        children: what each of them had inside.
    """

    names: tuple[str, ...]
    parents: tuple[nn.Module, ...]
    children: tuple[list[nn.Module | None], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Structure":
        """Of a model as it is now."""
        found = [(name, module) for name, module in model.named_modules() if module._modules]
        return cls(
            tuple(name for name, _ in found),
            tuple(module for _, module in found),
            tuple(list(module._modules.values()) for _, module in found),
        )

    @property
    def holds(self) -> bool:
        """Whether every module still has the same modules inside."""
        pairs = zip(self.parents, self.children, strict=True)
        return all(list(module._modules.values()) == children for module, children in pairs)

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
        return found

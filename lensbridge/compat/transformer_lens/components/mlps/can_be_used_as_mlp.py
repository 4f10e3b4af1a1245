"""Where TransformerLens has the class of everything that can be in the place of an MLP."""

from typing import Any

from torch import nn

from lensbridge.compat.transformer_lens.tree import Part


class _IsMLP(type(nn.Module)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        own = isinstance(instance, Part) and instance.path.endswith(".mlp")
        return own or super().__instancecheck__(instance)


class CanBeUsedAsMLP(nn.Module, metaclass=_IsMLP):
    """For annotations and `isinstance`: the MLP of a layer is one.

    A module of your own that stands in the place of an MLP can be any torch module.
    """


__all__ = ["CanBeUsedAsMLP"]

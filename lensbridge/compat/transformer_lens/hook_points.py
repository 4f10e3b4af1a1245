"""Points that functions can listen to, and the module that has them inside."""

from lensbridge.compat.transformer_lens.point import (
    HookFunction,
    HookPoint,
    LensHandle,
    NamesFilter,
)
from lensbridge.compat.transformer_lens.root_module import HookedRootModule

__all__ = ["HookFunction", "HookPoint", "HookedRootModule", "LensHandle", "NamesFilter"]

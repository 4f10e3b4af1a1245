"""`HookPoint`, and the module class that contains hook points."""

import torch

from lensbridge.compat.transformer_lens.point import (
    HookFunction,
    HookPoint,
    LensHandle,
    NamesFilter,
)
from lensbridge.compat.transformer_lens.root_module import HookedRootModule

DeviceType = torch.device | str | None

__all__ = [
    "DeviceType",
    "HookFunction",
    "HookPoint",
    "HookedRootModule",
    "LensHandle",
    "NamesFilter",
]

"""Any PyTorch module: a lens whose points are the module's own modules."""

from lensbridge.modules.cache import ModuleCache
from lensbridge.modules.lens import ModuleLens

__all__ = ["ModuleCache", "ModuleLens"]

"""Mechanistic interpretability on unmodified HuggingFace models.

import lensbridge
model = lensbridge.load("demo")
logits, cache = model.run_with_cache("The Eiffel Tower is in the city of")
"""

from typing import TYPE_CHECKING, Any

from lensbridge.errors import LensbridgeError, suggest
from lensbridge.spec import Architecture

if TYPE_CHECKING:
    from lensbridge.cache import ActivationCache
    from lensbridge.comparison import compare
    from lensbridge.hooks.callbacks import Hook
    from lensbridge.loading import load
    from lensbridge.model import LensModel
    from lensbridge.plugins import register
    from lensbridge.points.short_names import get_act_name
    from lensbridge.points.table import POINTS
    from lensbridge.tensors.factored import FactoredMatrix

__version__ = "0.1.0"
"""The version that is installed."""

__all__ = [
    "POINTS",
    "ActivationCache",
    "Architecture",
    "FactoredMatrix",
    "Hook",
    "LensModel",
    "LensbridgeError",
    "__version__",
    "compare",
    "get_act_name",
    "load",
    "register",
]

_HOMES = {
    "ActivationCache": "cache",
    "FactoredMatrix": "tensors.factored",
    "Hook": "hooks.callbacks",
    "LensModel": "model",
    "POINTS": "points.table",
    "compare": "comparison",
    "get_act_name": "points.short_names",
    "load": "loading",
    "register": "plugins",
}

_COMPAT = "lensbridge.load(name), or import lensbridge.compat.transformer_lens as transformer_lens"
_OF_TRANSFORMER_LENS = (
    *("HookedTransformer", "HookedTransformerConfig", "HookedEncoder", "HookedEncoderDecoder"),
    *("HookedRootModule", "HookPoint", "TransformerBridge", "utils"),
)
_INSTEAD = {
    "from_pretrained": "lensbridge.load(name)",
    "load_model": "lensbridge.load(name)",
    "LanguageModel": "lensbridge.load(name)",
    "HookedModel": "from lensbridge.hooked_model import HookedModel",
    "SAE": "import lensbridge.compat.sae_lens as sae_lens",
    "HookedSAETransformer": "import lensbridge.compat.sae_lens as sae_lens",
    **dict.fromkeys(_OF_TRANSFORMER_LENS, _COMPAT),
}
"""Names that other libraries have at their top, and what to write for them here."""

_ROOMS = (
    *("analysis", "causal", "comparison", "compat", "evals", "interventions", "patching", "saes"),
    *("testing", "viz"),
)
"""Subpackages that `lensbridge.name` imports when it is first written."""


def __getattr__(name: str) -> Any:
    """Import what is public when it is first used: `import lensbridge` costs nothing itself."""
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f"lensbridge.{name}")
    if name not in _HOMES:
        hint = f" Write {_INSTEAD[name]}." if name in _INSTEAD else suggest(name, __dir__())
        raise AttributeError(f"module 'lensbridge' has no attribute {name!r}.{hint}")
    return getattr(import_module(f"lensbridge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})

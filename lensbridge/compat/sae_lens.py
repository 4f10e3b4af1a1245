"""SAELens with its `HookedSAETransformer` over lensbridge; everything else is SAELens's own.

from lensbridge.compat.sae_lens import SAE, HookedSAETransformer
"""

from importlib import import_module
from typing import Any

from lensbridge.compat.transformer_lens.sae_transformer import HookedSAETransformer


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return getattr(import_module("sae_lens"), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} is SAELens's own, which is not installed: pip install sae-lens."
        ) from error


__all__ = ["HookedSAETransformer"]

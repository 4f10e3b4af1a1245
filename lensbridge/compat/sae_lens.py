"""SAELens with a `HookedSAETransformer` over lensbridge; everything else comes from SAELens.

from lensbridge.compat.sae_lens import SAE, HookedSAETransformer
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lensbridge.compat.transformer_lens.sae_transformer import HookedSAETransformer


def __getattr__(name: str) -> Any:
    if name.startswith(("_", "pytest")):  # names that tools look up in every module
        raise AttributeError(name)
    if find_spec("sae_lens") is not None:
        return getattr(import_module("sae_lens"), name)
    if not name[0].isupper():
        raise AttributeError(name)
    raise ImportError(f"{name} comes from SAELens, which is not installed: pip install sae-lens.")


__all__ = ["HookedSAETransformer"]

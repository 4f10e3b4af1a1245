"""TransformerLens's names over lensbridge.

import lensbridge.compat.transformer_lens as transformer_lens

is the change that a notebook needs. The classes and functions here do the same by means of
lensbridge; the model that runs is the HuggingFace one. What differs is in
docs/how-to/from-transformer-lens.md.
"""

from lensbridge.compat.transformer_lens import (
    evals,
    head_detector,
    hook_points,
    loading_from_pretrained,
    model_bridge,
    patching,
    supported_models,
    train,
    utilities,
    utils,
)
from lensbridge.compat.transformer_lens.ActivationCache import ActivationCache
from lensbridge.compat.transformer_lens.bridge import TransformerBridge, build_bridge_from_module
from lensbridge.compat.transformer_lens.cache import (
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
)
from lensbridge.compat.transformer_lens.FactoredMatrix import FactoredMatrix
from lensbridge.compat.transformer_lens.hook_points import HookPoint
from lensbridge.compat.transformer_lens.HookedEncoder import HookedEncoder
from lensbridge.compat.transformer_lens.HookedEncoderDecoder import HookedEncoderDecoder
from lensbridge.compat.transformer_lens.HookedRootModule import HookedRootModule
from lensbridge.compat.transformer_lens.HookedTransformer import HookedTransformer
from lensbridge.compat.transformer_lens.HookedTransformerConfig import HookedTransformerConfig
from lensbridge.compat.transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache
from lensbridge.compat.transformer_lens.sae_transformer import HookedSAETransformer
from lensbridge.compat.transformer_lens.SVDInterpreter import SVDInterpreter

loading = loading_from_pretrained

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedEncoder",
    "HookedEncoderDecoder",
    "HookedRootModule",
    "HookedSAETransformer",
    "HookedTransformer",
    "HookedTransformerConfig",
    "HookedTransformerKeyValueCache",
    "SVDInterpreter",
    "TransformerBridge",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
    "build_bridge_from_module",
    "evals",
    "head_detector",
    "hook_points",
    "loading",
    "loading_from_pretrained",
    "model_bridge",
    "patching",
    "supported_models",
    "train",
    "utilities",
    "utils",
]

# ruff: noqa: N999 (the name is TransformerLens's)
"""Where TransformerLens has `HookedTransformer`."""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens import loading_from_pretrained as loading
from lensbridge.compat.transformer_lens import utils
from lensbridge.compat.transformer_lens.activation_cache import ActivationCache
from lensbridge.compat.transformer_lens.cache import TransformerLensKeyValueCache
from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.FactoredMatrix import FactoredMatrix
from lensbridge.compat.transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache
from lensbridge.compat.transformer_lens.point import HookPoint
from lensbridge.compat.transformer_lens.root_module import HookedRootModule
from lensbridge.compat.transformer_lens.transformer import HookedTransformer

SingleLoss: TypeAlias = Tensor
LossPerToken: TypeAlias = Tensor
Loss: TypeAlias = Tensor


DTYPE_FROM_STRING = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


class Output(NamedTuple):
    """What `return_type="both"` returns."""

    logits: Tensor
    loss: Loss


__all__ = [
    "DTYPE_FROM_STRING",
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "HookedTransformer",
    "HookedTransformerConfig",
    "HookedTransformerKeyValueCache",
    "Loss",
    "LossPerToken",
    "Output",
    "SingleLoss",
    "TransformerLensKeyValueCache",
    "loading",
    "utils",
]

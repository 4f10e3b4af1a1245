"""`blocks.0.attn.mask` and `attn_type`: which earlier positions a layer can attend to."""

from typing import Any, Protocol

import torch
from torch import Tensor

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.errors import HookError
from lensbridge.model import LensModel

LONGEST = 2048
"""The most positions of a mask; TransformerLens cuts the contexts of most models to as many."""


class Model(Protocol):
    """The model that has the layers."""

    lens: LensModel
    cfg: HookedTransformerConfig


def mask_or_type(model: Model, full: str) -> Any:
    """What is at a path that ends in `attn.mask` or `attn.attn_type`; None for another path.

    Shapes: a mask is `[query, key]`, true where a query can attend to a key.
    """
    layer, _, name = full.rpartition(".attn.")
    if name not in ("mask", "attn_type") or not layer.rpartition(".")[2].isdigit():
        return None
    kind = attn_type(model, int(layer.rpartition(".")[2]))
    return kind if name == "attn_type" else _mask(model, kind)


def attn_type(model: Model, layer: int) -> str:
    """ "local" if the layer attends to a window, else "global"."""
    config = model.lens.cfg.hf.get_text_config()
    listed = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if listed:
        return "local" if listed[layer] in ("local", "sliding_attention") else "global"
    windowed = getattr(config, "sliding_window", None) is not None
    return "local" if windowed and getattr(config, "use_sliding_window", True) else "global"


def _mask(model: Model, kind: str) -> Tensor:
    cfg = model.cfg
    size = min(cfg.n_ctx or LONGEST, LONGEST)
    every = torch.ones(size, size, dtype=torch.bool, device=model.lens.device)
    if cfg.attention_dir == "bidirectional":
        return every
    seen = every.tril()
    return seen.triu(1 - cfg.window_size) if kind == "local" and cfg.window_size else seen


def refuse_other_mask(model: Model, full: str, value: Any) -> None:
    """Nothing, if a mask or type is the one that the layer has.

    Raises:
        HookError: it is another.
    """
    here = mask_or_type(model, full)
    same = torch.equal(here, value) if isinstance(value, Tensor) else here == value
    if not same:
        raise HookError(
            f"{full} cannot be changed: HuggingFace's module makes its mask in each run. Hook "
            f"{full.rpartition('.')[0]}.hook_attn_scores, and set scores to -inf where a query is "
            "not to attend to a key."
        )

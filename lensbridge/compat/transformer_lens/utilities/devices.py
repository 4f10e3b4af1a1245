"""Where layers are. HuggingFace's `device_map` places them; nothing is moved by hand here."""

from typing import Any

import torch
from torch import nn

from lensbridge.compat.transformer_lens.tensors import get_device, print_gpu_mem


def get_device_for_block_index(index: int, cfg: Any, device: Any = None) -> torch.device:
    """The device of a model on one device. Ask a weight where there are several.

    Args:
        index: of the layer.
        cfg: of the model.
        device: instead of `cfg.device`.
    """
    return torch.device(device or cfg.device)


def move_to_and_update_config(
    model: nn.Module, device_or_dtype: Any, print_details: bool = True
) -> Any:
    """`model.to(...)`, which notes it in `cfg` too."""
    return model.to(device_or_dtype)


__all__ = ["get_device", "get_device_for_block_index", "move_to_and_update_config", "print_gpu_mem"]

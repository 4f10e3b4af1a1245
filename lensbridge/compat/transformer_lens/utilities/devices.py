"""Devices of layers, which HuggingFace's `device_map` places; functions here move nothing."""

from typing import Any

import torch
from torch import nn

from lensbridge.compat.transformer_lens.tensors import get_device, print_gpu_mem


def get_device_for_block_index(index: int, cfg: Any, device: Any = None) -> torch.device:
    """The device of a model that is on one device. Otherwise look at the device of a weight.

    Args:
        index: the layer.
        cfg: the model's config.
        device: used instead of `cfg.device`.
    """
    return torch.device(device or cfg.device)


def move_to_and_update_config(
    model: nn.Module, device_or_dtype: Any, print_details: bool = True
) -> Any:
    """`model.to(...)`, which also updates `cfg`."""
    return model.to(device_or_dtype)


__all__ = ["get_device", "get_device_for_block_index", "move_to_and_update_config", "print_gpu_mem"]

"""On which device a model is, and in which dtype."""

from typing import Any

import torch
from torch import nn

from lensbridge.errors import InputError, LoadError


def device_of(device: str | torch.device) -> torch.device:
    """A device with its number.

    Raises:
        InputError: it cannot be used here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"The device {str(device)!r} cannot be used here: {reason}") from error


def placement_of(device: torch.device | None, device_map: Any) -> Any:
    """What `from_pretrained` takes as `device_map`.

    Raises:
        LoadError: both are given.
    """
    if device is None:
        return device_map
    if device_map is not None:
        raise LoadError("Pass device or device_map, not both: each says where the weights go.")
    return {"": device}  # straight there: no second copy in CPU memory


def as_it_is(
    model: nn.Module,
    device: torch.device | None,
    dtype: torch.dtype | None,
    asked: dict[str, Any],
) -> nn.Module:
    """A model object, moved to a device or a dtype where one is asked for.

    Args:
        model: it.
        device: where it is to be; None: where it is.
        dtype: what it is to be; None: what it is.
        asked: options that are only for models that are loaded by name.

    Raises:
        LoadError: one of these options is given.
    """
    pointless = [name for name, value in asked.items() if value is not None]
    if pointless:
        raise LoadError(
            f"A model object is used as it is; {', '.join(pointless)} can be passed only when a "
            "model is loaded by name."
        )
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
    return model

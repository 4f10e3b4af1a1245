"""Codes of one byte with scales beside them, one for each block: transformers' `FP8Linear`."""

from typing import Any

import torch
from torch import Tensor, nn

_SCALES = ("{}_scale_inv", "{}_scale", "scale_{}")


def scale_of(module: nn.Module, name: str) -> Tensor | None:
    """The scales of a weight; None where it is no tensor of codes, or has none."""
    weight = module._parameters.get(name)
    if weight is None or weight.itemsize > 1:
        return None
    for scale in (pattern.format(name) for pattern in _SCALES):
        held = module._parameters.get(scale)
        held = module._buffers.get(scale) if held is None else held  # type: ignore[assignment]
        if held is not None:
            return held
    return None


def dequantized(module: Any, name: str) -> Tensor | None:
    """Each block times its scale, in float32 or the dtype of the scales.

    Shapes: `[..., row, column]` with scales `[..., block row, block column]`.
    """
    weight, scale = module._parameters[name], scale_of(module, name)
    assert scale is not None
    if weight.dtype == torch.int8 or scale.ndim > weight.ndim:
        return _packed_fours(weight, scale)
    wide = _wide(scale)
    if wide.ndim < 2:
        per_row = wide.numel() == weight.shape[0] > 1
        return weight.to(wide.dtype) * (
            wide.view(-1, *[1] * (weight.ndim - 1)) if per_row else wide
        )
    sizes = _block_size(module, weight, wide)
    for axis, size in zip((-2, -1), sizes, strict=True):
        wide = wide.repeat_interleave(size, dim=axis).narrow(axis, 0, weight.shape[axis])
    return weight.to(wide.dtype) * wide


def _block_size(module: Any, weight: Tensor, scale: Tensor) -> tuple[int, int]:
    """The rows and columns of a block: said by the module, or from the shapes."""
    counts, rows_columns = scale.shape[-2:], weight.shape[-2:]
    said = getattr(module, "block_size", None)
    if said and all(
        -(-n // size) == k for n, size, k in zip(rows_columns, said, counts, strict=True)
    ):
        return int(said[0]), int(said[1])
    rows, columns = (-(-n // k) for n, k in zip(rows_columns, counts, strict=True))
    return rows, columns


def _wide(scale: Tensor) -> Tensor:
    if scale.dtype == torch.uint8:  # exponents of two
        return (scale.float() - 127.0).exp2()
    return scale.float() if scale.itemsize < 2 else scale


def _packed_fours(weight: Tensor, scale: Tensor) -> Tensor:
    """Two codes of four bits in a byte, by transformers' own dequantizer."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    return Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)

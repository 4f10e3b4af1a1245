"""Integer codes that GPTQ and AWQ pack into words of 32 bits, with scales and zeros for groups.

The library's own dequantizer is asked first. Otherwise the published formats are unpacked, and the
one that gives what the module computes for a random row is taken.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.native.holding.proof import rows_like, settled

_WORD = 32
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ each of eight neighbouring columns is."""


def is_packed(module: nn.Module) -> bool:
    """Whether a module holds packed codes, scales and zeros."""
    held = {**module._parameters, **module._buffers}
    codes = held.get("qweight")
    return codes is not None and not codes.is_floating_point() and {"qzeros", "scales"} <= {*held}


def dequantized(module: Any, name: str) -> Tensor | None:
    """Shapes: `[out, in]`

    Raises:
        WeightError: no published format gives what the module computes.
    """
    own = getattr(module, "dequantize_weight", None)
    if own is not None:
        return _of_library(module, own())
    found = next((one for one in _unpacked(module) if _agrees(module, one)), None)
    if found is None:
        raise WeightError(
            f"The weight of a {type(module).__name__} cannot be read: its codes are packed neither "
            "as GPTQ nor as AWQ packs them, or the module cannot run here, which would show it. "
            "Load the model without quantization, or on the device for which it is quantized."
        )
    return found


def _of_library(module: Any, weight: Tensor) -> Tensor:
    """GPTQModel gives `[in, out]`."""
    return weight.mT if weight.shape[0] == module.in_features else weight


def _unpacked(module: Any) -> Iterator[Tensor]:
    """The weight in each published format that fits the shapes."""
    n_in, n_out = int(module.in_features), int(module.out_features)
    codes, zeros, scales = module.qweight, module.qzeros, module.scales
    groups = _groups(module, n_in, scales.shape[0])
    if codes.shape[0] == n_in:  # AWQ: along the columns
        bits = _WORD * codes.shape[1] // n_out
        if bits == 4:
            yield _weight(_awq(codes), _awq(zeros), scales, groups)
    elif _WORD % (bits := _WORD * codes.shape[0] // n_in) == 0:  # GPTQ: along the rows
        whole, offset = _spread(codes.mT, bits).mT, _spread(zeros, bits)[:, :n_out]
        yield _weight(whole, offset + 1, scales, groups)
        yield _weight(whole, offset, scales, groups)


def _weight(codes: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    """Shapes: `[in, out]`, `[group, out]`, `[group, out]`, `[in]` -> `[out, in]`"""
    return ((codes - zeros[groups]).to(scales.dtype) * scales[groups]).mT


def _groups(module: Any, n_in: int, count: int) -> Tensor:
    """The group of each input channel."""
    given = getattr(module, "g_idx", None)
    if isinstance(given, Tensor) and given.numel() == n_in:
        return given.long()
    return torch.arange(n_in, device=module.qweight.device) // -(-n_in // count)


def _spread(words: Tensor, bits: int) -> Tensor:
    """Shapes: `[row, word]` -> `[row, code]`"""
    shifts = torch.arange(0, _WORD, bits, device=words.device, dtype=words.dtype)
    return ((words.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


def _awq(words: Tensor) -> Tensor:
    codes = _spread(words, 4).unflatten(-1, (-1, 8))
    return codes[..., list(_AWQ_ORDER)].flatten(-2)


def _agrees(module: Any, weight: Tensor) -> bool:
    """Whether the module computes a product with this weight, up to coarse rounding."""
    row = rows_like(weight, 1, weight.shape[1])
    bias = getattr(module, "bias", None)
    wanted = row @ weight.mT
    wanted = wanted if bias is None else wanted + bias.to(wanted)
    try:
        with settled(module), torch.no_grad():
            found = module.forward(row).reshape(wanted.shape)
    except Exception:  # a kernel that is not there
        return False
    return bool((found - wanted).abs().max() <= 0.01 * wanted.abs().max())

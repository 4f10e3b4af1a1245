"""Integer codes that GPTQ and AWQ pack into words of 32 bits, with scales and zeros for groups.

The library's own dequantizer comes first, then the published formats. What gives the same as the
module for a random row is taken.
"""

from collections.abc import Iterator
from contextlib import suppress
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
    own = next(_by_library(module), None)
    run = _run(module, module.scales if own is None else own)
    if own is not None and (run is None or _agrees(own, *run)):
        return own
    found = next((one for one in _unpacked(module) if run and _agrees(one, *run)), None)
    if found is None:
        raise WeightError(
            f"The weight of a {type(module).__name__} cannot be read: its codes are packed neither "
            "as GPTQ nor as AWQ packs them, or the module cannot run here, which would show it. "
            "Load the model without quantization, or on the device for which it is quantized."
        )
    return found


def _by_library(module: Any) -> Iterator[Tensor]:
    """GPTQModel's own, which gives `[in, out]`; not every format of it has one that works."""
    own = getattr(module, "dequantize_weight", None)
    if own is not None:
        with suppress(RuntimeError, AttributeError):
            yield own().mT


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


def _run(module: Any, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """A random row, and what the module makes of it beside its bias; None if it cannot run here."""
    row = rows_like(like, 1, int(module.in_features))
    try:
        with settled(module), torch.no_grad():
            out = module.forward(torch.cat([row, torch.zeros_like(row)]))
            out = out.reshape(2, int(module.out_features))
    except Exception:  # a kernel that is not there
        return None
    return row, out[:1] - out[1:]


def _agrees(weight: Tensor, row: Tensor, out: Tensor) -> bool:
    """Whether the module computes a product with this weight, up to coarse rounding."""
    wanted = row @ weight.mT
    return bool((out - wanted).abs().max() <= 0.01 * wanted.abs().max())

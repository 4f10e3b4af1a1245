"""Dtypes of weights and activations by name."""

import torch

from lensbridge.errors import InputError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_SHORT = {
    "float": "float32",
    "half": "float16",
    "double": "float64",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "fp64": "float64",
}


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype that was given itself or by its name; None for None and "auto".

    Raises:
        InputError: there is no such dtype of floating point numbers.

    Example:
        >>> dtype_of("bf16"), dtype_of("torch.float16"), dtype_of(None)
        (torch.bfloat16, torch.float16, None)
    """
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    named = {str(one).removeprefix("torch."): one for one in FLOATS}
    plain = str(dtype).removeprefix("torch.")
    plain = _SHORT.get(plain, plain)
    if plain not in named:
        known = ", ".join(named)
        raise InputError(f"There is no dtype {dtype!r} of real numbers; use one of {known}.")
    return named[plain]

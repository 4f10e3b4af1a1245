"""The header of safetensors bytes, checked before any tensor is made of them."""

import json
from collections.abc import Mapping
from math import prod
from typing import Any

from lensbridge.errors import InputError

DTYPES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
"""The dtypes that are read, and the bytes of an entry."""

_LENGTH = 8
_MOST_AXES = 16
_MOST_DIGITS = 19
_DEPTH = 200
"""How deep JSON may be nested: a reader that calls itself has to come to an end."""


def metadata_of(body: bytes, max_tensors: int) -> Mapping[str, str]:
    """The metadata of safetensors bytes whose header is right.

    Args:
        body: the bytes.
        max_tensors: how many tensors they may hold.

    Raises:
        InputError: the header is incomplete or no JSON, or its tensors do not fill the bytes
            exactly.
    """
    if len(body) < _LENGTH:
        raise InputError(f"These are no safetensors: they have {len(body)} bytes.")
    length = int.from_bytes(body[:_LENGTH], "little")
    if length > len(body) - _LENGTH:
        raise InputError(
            f"The safetensors header says that it has {length} bytes, and "
            f"{len(body) - _LENGTH} follow."
        )
    header = json_of(body[_LENGTH : _LENGTH + length])
    if not isinstance(header, dict):
        raise InputError("The safetensors header is no JSON object.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError("The metadata of the safetensors header are no texts.")
    if len(header) > max_tensors:
        raise InputError(f"The safetensors hold {len(header)} tensors; {max_tensors} are read.")
    _check_tensors(header, len(body) - _LENGTH - length)
    return metadata


def _check_tensors(header: Mapping[str, Any], size: int) -> None:
    """Check that tensors follow each other without a gap and end where the bytes end."""
    spans = sorted(_span(name, about) for name, about in header.items())
    end = 0
    for begin, last, name in spans:
        if begin != end:
            raise InputError(f"The tensor {name!r} begins at byte {begin}, and not at {end}.")
        end = last
    if end != size:
        raise InputError(f"The tensors end at byte {end}, and there are {size}.")


def _span(name: str, about: Any) -> tuple[int, int, str]:
    """Where a tensor begins and ends.

    Raises:
        InputError: its dtype and shape do not fit its bytes.
    """
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"The tensor {name!r} needs dtype, shape and data_offsets, no more.")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(
            f"The tensor {name!r} has the dtype {dtype!r}; {', '.join(DTYPES)} are read."
        )
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise InputError(
            f"The shape of the tensor {name!r} is no list of {_MOST_AXES} sizes or less."
        )
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise InputError(f"The data_offsets of the tensor {name!r} are no two numbers.")
    needed, found = prod(shape) * DTYPES[dtype], offsets[1] - offsets[0]
    if needed != found:
        raise InputError(
            f"The tensor {name!r} of shape {shape} and dtype {dtype} has {needed} bytes, and its "
            f"data_offsets are of {found}."
        )
    return offsets[0], offsets[1], name


def _are_sizes(given: Any) -> bool:
    return isinstance(given, list) and all(type(one) is int and one >= 0 for one in given)


def json_of(text: bytes | str) -> Any:
    """What JSON says, with numbers that fit into 64 bits.

    Raises:
        InputError: it is no JSON, or is nested too deeply.
    """
    try:
        found = json.loads(
            text, parse_int=_whole, parse_float=_number, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise InputError("The JSON is nested too deeply.") from None
    except InputError:
        raise
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"This is no JSON: {error}.") from error
    _check_depth(found)
    return found


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS + 1 or not -(2**63) <= int(digits) < 2**63:
        raise InputError(f"The number {digits[:24]} does not fit into 64 bits.")
    return int(digits)


def _number(digits: str) -> float:
    found = float(digits)
    if found in (float("inf"), float("-inf")):
        raise InputError(f"The number {digits[:24]} is too large.")
    return found


def _refuse_constant(name: str) -> Any:
    raise InputError(f"The JSON has {name}, which is none of its numbers.")


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(_DEPTH):
        level = [
            inside
            for one in level
            if isinstance(one, dict | list)
            for inside in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise InputError(f"The JSON is nested more than {_DEPTH} levels deep.")

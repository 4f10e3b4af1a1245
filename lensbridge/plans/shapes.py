"""Inputs that are given as a shape only."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.native.parts import ResolvedModel


def is_shape(value: Any) -> TypeGuard[tuple[int, int]]:
    """Whether a value is `(batch, tokens)`; ids come as lists and tensors.

    Example:
        >>> is_shape((1, 2048)), is_shape([1, 2048]), is_shape("a text")
        (True, False, False)
    """
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    )


def input_of(native: ResolvedModel, shape: tuple[int, int], start: int | None) -> Tensor:
    """An input of a shape: ids, or the residual stream for a run that starts at a layer.

    Raises:
        InputError: a batch or a length below 1; a model that reads no ids.
    """
    if min(shape) < 1:
        raise InputError(f"A shape is (batch, tokens), each at least 1; got {shape}.")
    if start is not None:
        dtype = next(one.dtype for one in native.core.parameters() if one.is_floating_point())
        return torch.zeros(*shape, native.sizes.d_model, dtype=dtype)
    if native.main_input != "input_ids":
        raise InputError(
            f"What a run of a {type(native.core).__name__} keeps cannot be told from a shape "
            f"(batch, tokens): it reads {native.main_input}. Pass an input, as to run_with_cache."
        )
    return _ids(shape)


def completed(
    native: ResolvedModel, shape: tuple[int, int], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The keywords of a run on a shape: shapes among them become ids.

    A decoder that reads an encoder gets as many tokens as the encoder if nothing is said.
    """
    found = {name: _ids(value) if is_shape(value) else value for name, value in given.items()}
    takes = "decoder_input_ids" in native.calling.accepted
    said = {"decoder_input_ids", "decoder_inputs_embeds"} & found.keys()
    if native.is_encoder_decoder and takes and not said:
        found["decoder_input_ids"] = _ids(shape)
    return found


def _ids(shape: tuple[int, int]) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)

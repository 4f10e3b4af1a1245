"""Packing: values to JSON with tensors beside it, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensbridge.errors import InputError, LensbridgeError, UnsupportedError
from lensbridge.inputs.prompts import plain_input
from lensbridge.interventions.document import Store
from lensbridge.remote.kinds import A_FUNCTION, BY_TAG, KINDS
from lensbridge.remote.message import Message

_OWN = ("tensor", "tuple", "object", "number")
"""Tags of what is no kind of its own."""


@dataclass
class Tensors(Store):
    """Where the tensors of a message are kept, each once."""

    held: dict[str, Tensor] | None = field(default_factory=dict)
    keys: dict[Any, str] = field(default_factory=dict)

    def put(self, tensor: Tensor) -> dict[str, Any]:
        """Keep a tensor, and give what names it."""
        assert self.held is not None
        plain = tensor.detach()
        place = (plain.data_ptr(), plain.dtype, plain.shape, plain.stride(), plain.device)
        if place not in self.keys:
            self.keys[place] = str(len(self.held))
            own = plain.cpu().contiguous()
            is_copy = own.data_ptr() != plain.data_ptr()
            self.held[self.keys[place]] = own if is_copy else own.clone()
        return {"tensor": self.keys[place]}


@dataclass(frozen=True)
class Packing:
    """Writes values to a document, and reads them from one.

    Args:
        store: the tensors.

    Example:
        >>> packing = Packing()
        >>> document = packing.pack({"pos_slice": slice(0, 3), "shape": (1, 2)})
        >>> document
        {'pos_slice': {'slice': [0, 3, None]}, 'shape': {'tuple': [1, 2]}}
        >>> packing.unpack(document)
        {'pos_slice': slice(0, 3, None), 'shape': (1, 2)}
    """

    store: Store = field(default_factory=Tensors)

    def pack(self, value: Any) -> Any:
        """A value as JSON.

        Raises:
            InputError: a function, or anything else that cannot be sent.
        """
        if value is None or isinstance(value, bool | str):
            return str(value) if isinstance(value, str) else value
        if isinstance(value, np.generic):
            return self.pack(value.item())
        if isinstance(value, int | float):
            return value if isfinite(value) else {"number": str(value)}
        if isinstance(value, Tensor | np.ndarray):
            return self.store.put(torch.as_tensor(value))
        for kind in KINDS:
            if isinstance(value, kind.type):
                return {kind.tag: kind.pack(value, self)}
        return self._pack_several(plain_input(value))

    def _pack_several(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self._pack_mapping(value)
        if isinstance(value, list):
            return [self.pack(one) for one in value]
        if isinstance(value, tuple):
            return {"tuple": [self.pack(one) for one in value]}
        if isinstance(value, set):
            return [self.pack(one) for one in sorted(value)]
        if isinstance(value, str):
            return value
        if callable(value):
            raise UnsupportedError(f"{A_FUNCTION}, or another value that is data.")
        raise InputError(f"A {type(value).__name__} cannot be sent to a server: {value!r:.80}.")

    def _pack_mapping(self, value: Mapping[Any, Any]) -> Any:
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise InputError(f"The keys of a mapping are text, not {wrong[0]!r:.40}.")
        packed = {key: self.pack(one) for key, one in value.items()}
        alone = len(packed) == 1 and (*packed,)[0] in (*_OWN, *BY_TAG)
        return {"object": packed} if alone else packed

    def unpack(self, document: Any) -> Any:
        """The value of a document.

        Raises:
            InputError: the document says nothing that could be read.
        """
        if isinstance(document, list):
            return [self.unpack(one) for one in document]
        if not isinstance(document, dict):
            return document
        if len(document) != 1:
            return {key: self.unpack(one) for key, one in document.items()}
        ((tag, inside),) = document.items()
        if tag == "tensor":
            return self.store.get(inside)
        if tag == "tuple":
            return tuple(self.unpack(one) for one in inside)
        if tag == "object":
            return {key: self.unpack(one) for key, one in inside.items()}
        if tag == "number":
            return float(inside)
        if tag in BY_TAG:
            return BY_TAG[tag].unpack(inside, self)
        return {tag: self.unpack(inside)}


def packed(values: Mapping[str, Any]) -> Message:
    """Values by name as a message.

    Raises:
        InputError: one cannot be sent.
    """
    tensors = Tensors()
    packing = Packing(tensors)
    document = {name: packing.pack(value) for name, value in values.items()}
    return Message(document, tensors.held or {})


def unpacked(message: Message) -> dict[str, Any]:
    """The values of a message by name.

    Raises:
        InputError: the message was not written by `packed`.
    """
    packing = Packing(Tensors(dict(message.tensors)))
    try:
        return {name: packing.unpack(one) for name, one in message.document.items()}
    except LensbridgeError:
        raise
    except Exception as error:  # whatever the constructors of values raise
        raise InputError(
            f"The message cannot be read ({type(error).__name__}: {str(error)[:200]})."
        ) from error

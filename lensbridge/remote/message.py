"""Message: what goes between client and server: a JSON document, and the tensors that it names.

It is a safetensors file: the document is in its metadata. A message without tensors may also be
plain JSON.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.remote.header import json_of, metadata_of
from lensbridge.remote.protocol import PROTOCOL

_LENGTH = 8


@dataclass(frozen=True, eq=False)
class Message:
    """A document and its tensors.

    Args:
        document: a JSON object.
        tensors: by the keys that the document names.

    Example:
        >>> import torch
        >>> message = Message({"input": {"tensor": "0"}}, {"0": torch.tensor([1, 2])})
        >>> Message.from_bytes(message.to_bytes(), 1).tensors["0"]
        tensor([1, 2])
    """

    document: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The message as safetensors."""
        text = json.dumps(self.document, allow_nan=False)
        return save(dict(self.tensors), {"protocol": PROTOCOL, "document": text})

    @classmethod
    def from_bytes(cls, body: bytes, max_tensors: int) -> "Message":
        """A message from its bytes; tensors are made when the header is known to be right.

        Raises:
            InputError: these bytes are no message.
        """
        metadata = metadata_of(body, max_tensors)
        if metadata.get("protocol") != PROTOCOL:
            raise InputError(
                f"The message is of the protocol {metadata.get('protocol')!r}, and this is "
                f"{PROTOCOL!r}."
            )
        document = json_of(metadata.get("document", ""))
        if not isinstance(document, dict):
            raise InputError("The document of the message is no JSON object.")
        try:
            return cls(document, load(body))
        except (SafetensorError, ValueError, KeyError) as error:
            raise InputError(f"The tensors cannot be read: {error}.") from error

    @classmethod
    def from_json(cls, body: bytes) -> "Message":
        """A message without tensors.

        Raises:
            InputError: these bytes are no JSON object.
        """
        document = json_of(body)
        if not isinstance(document, dict):
            raise InputError("A request is a JSON object with the arguments by name.")
        return cls(document)


def framed(sort: bytes, body: bytes) -> bytes:
    """An event (JSON) or a reply, behind its sort and its length."""
    return sort + len(body).to_bytes(_LENGTH, "little") + body


def unframed(parts: Iterable[bytes], most: int) -> Iterator[tuple[bytes, bytes]]:
    """The events and the reply in bytes that come part by part, each with its sort.

    Raises:
        InputError: one is larger than it may be, or the bytes end inside one.
    """
    held, front = bytearray(), 1 + _LENGTH
    for part in parts:
        held += part
        while len(held) >= front:
            end = front + int.from_bytes(held[1:front], "little")
            if end > most:
                raise InputError(f"A message of {end} bytes came; {most} are read at most.")
            if len(held) < end:
                break
            yield bytes(held[:1]), bytes(held[front:end])
            del held[:end]
    if held:
        raise InputError("The connection ended in the middle of a message.")

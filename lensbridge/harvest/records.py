"""What a record of a dataset has for a document: its text, its ids or its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lensbridge.errors import InputError, suggest
from lensbridge.harvest.source import Content


def content_of(record: Any, field: str, where: str) -> Content:
    """The document that a record has: the record itself, or what is in its field.

    Args:
        record: text, ids (a sequence or a tensor), messages of a chat, or a mapping.
        field: the field of a mapping.
        where: which record, for errors.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(record, Mapping) and "role" not in record:
        return _plain(_of_field(record, field, where), where)
    return _plain(record, where)


def _of_field(record: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in record:
        known = [str(one) for one in record]
        raise InputError(
            f"{where} has no field {field!r}; its fields are {', '.join(known) or 'none'}."
            f"{suggest(field, known)} Name it: field=..."
        )
    return record[field]


def _plain(given: Any, where: str) -> Content:
    if isinstance(given, str):
        return given
    listed = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(listed, Sequence) and not isinstance(listed, (bytes, str)):
        values = listed if type(listed) is list else list(listed)
        if set(map(type, values)) <= {int}:
            return values
        if values and all(isinstance(one, Mapping) and "role" in one for one in values):
            return [dict(one) for one in values]
    raise InputError(
        f"{where} is {given!r:.60}, of type {type(given).__name__}. A document is text, a row of "
        "token ids, or a list of messages with 'role' and 'content'."
    )

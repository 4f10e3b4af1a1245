"""What shows how many positions a model takes: its table of positions, or its config."""

from collections.abc import Iterator

from torch import nn

from lensbridge.conformance.claim import Claim
from lensbridge.conformance.subject import Subject, config_of
from lensbridge.native.parts import StackPart
from lensbridge.native.resolve.config_reader import ConfigReader
from lensbridge.native.settings import raw_config
from lensbridge.native.table import padding_of
from lensbridge.spec import Stack

FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Config fields that hold the number of positions."""

SPARE = 2
"""Rows of a table of positions that no position has (BART and OPT begin with the third)."""


def claims_of_context(subject: Subject) -> Iterator[Claim]:
    """Claims on `dims.context` of each stack."""
    spec = subject.model.architecture
    yield from _of_field(subject)
    for stack, (at, part) in zip((spec, *spec.towers), subject.stacks.items(), strict=True):
        if stack.dims.context is not None:
            yield from _of_number(config_of(subject, stack), stack, at, part)


def _of_field(subject: Subject) -> Iterator[Claim]:
    """The main stack says a context if the config has one, and names a field that there is."""
    spec = subject.model.architecture
    said, config = spec.dims.context, config_of(subject, spec)
    if said is None:
        found = [name for name in FIELDS if isinstance(config.optional(name), int)]
        shown = f"the config has {' and '.join(found)}, and the description has no context"
        yield Claim("dims.context", not found, shown)
        rows = _rows(subject.model.native.main.pos_embed)
        shown = f"{spec.pos_embed} has {rows} rows, and the description has no context"
        yield Claim("dims.context", rows is None, shown)
    elif isinstance(said, str) and raw_config(subject.model.native.core) is not None:
        shown = f"the config has no field {said!r}"
        unset = said in config.config.to_dict()
        yield Claim("dims.context", unset or config.optional(said) is not None, shown)


def _of_number(config: ConfigReader, stack: Stack, at: str, part: StackPart) -> Iterator[Claim]:
    """The number of positions is that of the table, or if there is none, that of the config."""
    said = config.optional_size(stack.dims.context)
    if said is None or said < 0:  # XLNet says -1
        return
    told = f"{stack.dims.context!r} is {said}" if isinstance(stack.dims.context, str) else f"{said}"
    rows = _rows(part.pos_embed)
    if rows is not None:
        spare = max(SPARE, 1 + (padding_of(part.pos_embed) or 0))
        shown = f"{told}, and {stack.pos_embed} has {rows} rows"
        yield Claim(f"{at}dims.context", 0 <= rows - said <= spare, shown)
    elif isinstance(stack.dims.context, int):
        held = {name: config.optional(name) for name in FIELDS}
        held = {name: value for name, value in held.items() if isinstance(value, int)}
        listed = " and ".join(f"{name}={value}" for name, value in held.items())
        yield Claim(
            f"{at}dims.context",
            not held or said in held.values(),
            f"{told}, and the config has {listed}",
        )


def _rows(table: nn.Module | None) -> int | None:
    """The number of rows of a table of positions; None if it is no table."""
    weight = None if table is None else table._parameters.get("weight")
    return len(weight) if weight is not None and weight.ndim == 2 else None

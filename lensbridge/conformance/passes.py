"""A pass: what one run of a model returned, and the values at its points, block by block."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor, nn

from lensbridge.hooks.callbacks import Hook
from lensbridge.native.calling import spans_in

Edit: TypeAlias = tuple[Any, Callable[[Tensor, Hook], Tensor | None]]
"""A name or filter, and a hook function."""

Inputs: TypeAlias = Mapping[str, Tensor]
"""Arguments of the native forward."""

_IN_BLOCK = re.compile(r"((?:[a-z_]+\.)+\d+\.)")


@dataclass(frozen=True)
class Block:
    """The values of one block in one pass, by their names without its prefix: `attn.hook_q`."""

    at: str
    values: Mapping[str, Tensor]

    def __contains__(self, point: str) -> bool:
        return self.at + point in self.values

    def __getitem__(self, point: str) -> Tensor:
        return self.values[self.at + point]

    def name(self, point: str) -> str:
        """The full name."""
        return self.at + point


@dataclass(frozen=True)
class Pass:
    """The results of one run: the native output (logits, if there is a head) and named values."""

    output: Tensor
    values: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """Every block by its prefix, `blocks.0.`, in order."""
        prefixes = [prefix_of(name) for name in self.values]
        return {at: Block(at, self.values) for at in dict.fromkeys(prefixes) if at}

    def having(self, *points: str) -> list[Block]:
        """The blocks that have all of these points."""
        return [block for block in self.blocks.values() if all(p in block for p in points)]


def prefix_of(name: str) -> str:
    """The prefix of the block of a point, with the dot; "" for a point outside the blocks.

    Example:
        >>> prefix_of("vision.blocks.1.attn.hook_q"), prefix_of("ln_final.hook_out")
        ('vision.blocks.1.', '')
    """
    found = _IN_BLOCK.match(name)
    return found[1] if found else ""


def kind_of(name: str) -> str:
    """The name of a point without its numbers, which is the same in all layers.

    Example:
        >>> kind_of("blocks.11.mlp.experts.3.hook_in")
        'blocks.{i}.mlp.experts.{i}.hook_in'
    """
    return re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name)


@contextmanager
def native_output(model: nn.Module, live: Callable[[Any], Tensor]) -> Iterator[list[Tensor]]:
    """Collect what the model's forward returns inside: one tensor for each call.

    Args:
        model: the model.
        live: gives the tensor in what one call returned.
    """
    found: list[Tensor] = []
    handle = model.register_forward_hook(lambda _, args, out: found.append(live(out).detach()))
    try:
        yield found
    finally:
        handle.remove()


def live_tensor(output: Any) -> Tensor:
    """The logits of a native output, or else its first tensor, with its graph."""
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    spans = spans_in(output)
    if spans is not None:
        return spans
    values = output.values() if isinstance(output, Mapping) else output
    values = [values] if isinstance(values, Tensor) else values
    return next(value for value in values if isinstance(value, Tensor))

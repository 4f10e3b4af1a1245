"""The closed list of ways in which a weight is held."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Holding = Literal["plain", "sharded", "quantized", "adapted", "offloaded", "opaque"]
"""How a weight is held. A read of a "plain" one is a view, which can be written to; of all others
it is a copy, and a write raises.

plain: an ordinary float parameter, which the module uses as it is. sharded: other processes have
parts of it (`fully_shard`, tensor parallelism). quantized: stored as codes of a quantization
library. adapted: a layer of PEFT around another one, such as LoRA. offloaded: accelerate keeps it
on the CPU or on disk and fetches it for each run. opaque: the module computes something else from
it, so it is read by running the module.
"""

Measure: TypeAlias = Callable[[], Tensor]
"""Reads a weight by running its module."""


@dataclass(frozen=True)
class Held:
    """How one weight is held.

    Args:
        holding: the kind.
        by: what holds it, after "it is": "quantized by bitsandbytes".
        instead: what to do to be able to write to it, as a sentence.
        readable: how its value is read.
    """

    holding: Holding
    by: str
    instead: str = ""
    readable: str = "as a view"

    @property
    def writable(self) -> bool:
        """Whether a write to it changes the model."""
        return self.holding == "plain"

    @property
    def why(self) -> str:
        """Why a read of it is a copy, and what to do instead of writing to it; "" where plain."""
        return "" if self.writable else f"The weight is {self.by}. {self.instead}"


PLAIN = Held("plain", "an ordinary parameter")


def opaque(by: str, readable: str = "by running the module") -> Held:
    """What a module computes from other tensors, or in a way of its own."""
    return Held(
        "opaque",
        by,
        "Change the parameters from which the module computes it, in model.hf_model.",
        readable,
    )

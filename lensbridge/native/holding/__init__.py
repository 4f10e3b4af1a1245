"""How a weight is held, and how its whole float value is read.

`held(module, name)` says which of the kinds of `Holding` it is, and whether it can be written to;
`read(module, name)` gives the value. Every weight that lensbridge reads goes through these.
"""

from lensbridge.native.holding.kinds import PLAIN, Held, Holding, Measure, opaque
from lensbridge.native.holding.offloaded import execution_device
from lensbridge.native.holding.registry import (
    READERS,
    held,
    place_of,
    read,
    stored,
)
from lensbridge.native.holding.shapes import shapes_only

__all__ = [
    "PLAIN",
    "READERS",
    "Held",
    "Holding",
    "Measure",
    "execution_device",
    "held",
    "opaque",
    "place_of",
    "read",
    "shapes_only",
    "stored",
]

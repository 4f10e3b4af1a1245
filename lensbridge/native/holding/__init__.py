"""How a weight is held, how its whole float value is read, and whether it can be written to.

`held(module, name)` says which of the kinds of `Holding` it is, `read(module, name)` gives the
value, and `require_writable(module, name)` refuses a write. Every weight that lensbridge reads or
writes goes through these.
"""

from lensbridge.native.holding.kinds import PLAIN, Held, Holding, Measure, opaque
from lensbridge.native.holding.offloaded import execution_device
from lensbridge.native.holding.registry import (
    READERS,
    held,
    place_of,
    read,
    require_writable,
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
    "require_writable",
    "shapes_only",
    "stored",
]

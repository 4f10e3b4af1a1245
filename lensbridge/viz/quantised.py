"""Numbers for a script: whole multiples of a decimal step, compressed, as text."""

import zlib
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

MISSING = -32_768
MOST = 32_767
MOST_DIGITS = 4


@dataclass(frozen=True)
class Quantised:
    """An array as whole numbers of 16 bits.

    Args:
        text: base64 of the deflated bytes: first all low bytes, then all high ones.
        digits: decimals; a number is the value rounded to them. What is not finite is `MISSING`.
    """

    text: str
    digits: int

    @classmethod
    def of(cls, values: Any) -> "Quantised":
        """Quantise a numpy array.

        Four decimals, or fewer if the largest value does not fit into 16 bits then.
        """
        import numpy as np

        there = np.isfinite(values)
        largest = float(np.abs(values[there]).max(initial=0.0))
        digits = next((d for d in range(MOST_DIGITS, -9, -1) if largest * 10.0**d <= MOST), -9)
        steps = np.where(there, np.rint(np.where(there, values, 0) * 10.0**digits), MISSING)
        both = steps.astype("<i2").reshape(-1).view(np.uint8).reshape(-1, 2)
        packed = zlib.compress(both.T.tobytes(), 6)
        return cls(b64encode(packed).decode("ascii"), digits)

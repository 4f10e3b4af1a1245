"""Results as pandas data frames, where pandas is installed."""

from collections.abc import Iterable, Mapping
from typing import Any

from lensbridge.errors import LensbridgeError


def data_frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A data frame of rows.

    Raises:
        LensbridgeError: pandas is not installed.
    """
    try:
        import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise LensbridgeError(
            "A data frame needs pandas, which is not installed: pip install pandas."
        ) from error
    return pandas.DataFrame(list(rows))

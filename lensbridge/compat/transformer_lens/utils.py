"""The same as `utilities`, under its earlier name."""

from lensbridge.compat.transformer_lens.utilities import *  # noqa: F403
from lensbridge.compat.transformer_lens.utilities import __all__ as __all__

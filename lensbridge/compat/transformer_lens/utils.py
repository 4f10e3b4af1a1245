"""The same as `utilities`, under the name that it had before."""

from lensbridge.compat.transformer_lens.utilities import *  # noqa: F403
from lensbridge.compat.transformer_lens.utilities import __all__ as __all__

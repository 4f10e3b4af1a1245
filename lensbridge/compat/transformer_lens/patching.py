"""`lensbridge.patching` for models of this package."""

from lensbridge import patching
from lensbridge.compat.transformer_lens.translation import translated_names

globals().update(translated_names(patching))
__all__ = patching.__all__
